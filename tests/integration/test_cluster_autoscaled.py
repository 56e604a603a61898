"""A cluster that has no node for work until there is some, by Ray's provider of nodes on one machine."""

import pytest
from clusters import cluster_up

from rskd.jobs.cache import cache_logits

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300, func_only=True)]


def test_nodes_come_when_a_stage_wants_them(make_clustered, tmp_path_factory: pytest.TempPathFactory):
    with cluster_up(tmp_path_factory.mktemp("scaled"), autoscaled=2) as cluster:
        config = make_clustered("autoscaled", ray={"address": cluster.address})
        summary = cache_logits(config)["default"]
    assert not summary["skipped"]
    assert summary["parts"] > 2
