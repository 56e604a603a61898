"""Who may talk to whom, as the network policies say it."""

from cluster_manifests import COMPONENT, of_kind, pods, selects

from infra.kubernetes.lint import Object


def allowed(objects: list[Object], source: str, target: str, port: int) -> bool:
    """Whether the policies let `source` open this port of `target`: both sides have to say so."""

    def says(way: str, pod: str, other: str) -> bool:
        peers = {"ingress": "from", "egress": "to"}[way]
        rules = [
            rule
            for policy in of_kind(objects, "NetworkPolicy").values()
            if selects(policy["spec"]["podSelector"], {COMPONENT: pod})
            for rule in policy["spec"].get(way, [])
        ]
        return any(
            any(
                selects(peer["podSelector"], {COMPONENT: other})
                for peer in rule.get(peers, [])
                if "podSelector" in peer
            )
            and (not rule.get("ports") or any(each["port"] == port for each in rule["ports"]))
            for rule in rules
        )

    return says("egress", source, target) and says("ingress", target, source)


def test_policies_say_who_may_talk_to_whom(objects):
    components = {pod["metadata"]["labels"][COMPONENT] for pod in pods(objects)}
    assert components == {"prefect-server", "prefect-worker", "mlflow", "ray-head", "ray-worker"}
    listening = {4200, 4201, 5000, 6379, 8265, 8080, 52365}
    ways = {
        (source, target, port)
        for source in components
        for target in components
        for port in listening
        if allowed(objects, source, target, port)
    }
    ray = {"ray-head", "ray-worker"}
    assert ways == {
        ("prefect-worker", "prefect-server", 4200),
        ("prefect-worker", "ray-head", 8265),
        *((source, "mlflow", 5000) for source in ("prefect-worker", *ray)),
        *((source, target, port) for source in ray for target in ray for port in listening),
    }
    default = of_kind(objects, "NetworkPolicy")["default-deny"]["spec"]
    assert default == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_only_what_needs_them_reaches_the_database_and_the_store(objects):
    def outside(component: str) -> set[int]:
        return {
            port["port"]
            for policy in of_kind(objects, "NetworkPolicy").values()
            if selects(policy["spec"]["podSelector"], {COMPONENT: component})
            for rule in policy["spec"].get("egress", [])
            if "to" not in rule
            for port in rule["ports"]
        }

    assert {component: outside(component) for component in ("prefect-server", "mlflow")} == {
        "prefect-server": {5432},
        "mlflow": {5432, 443},
    }
    assert outside("prefect-worker") == outside("ray-worker") == {443}
    assert outside("ray-head") == {443, 6443}


def test_every_policy_and_service_and_budget_selects_a_pod(objects):
    labels = [pod["metadata"]["labels"] for pod in pods(objects)]
    for policy in of_kind(objects, "NetworkPolicy").values():
        assert any(selects(policy["spec"]["podSelector"], each) for each in labels), policy["metadata"]["name"]
    for service in of_kind(objects, "Service").values():
        assert service["spec"]["type"] == "ClusterIP"
        assert any(selects({"matchLabels": service["spec"]["selector"]}, each) for each in labels)
    (budget,) = of_kind(objects, "PodDisruptionBudget").values()
    assert [each[COMPONENT] for each in labels if selects(budget["spec"]["selector"], each)] == ["ray-head"]
