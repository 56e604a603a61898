"""The section `promotion`: what a student must show before it takes the champion's place.

`rskd.evaluation.promotion` decides by it; rskd/evaluation/README.md has the error rates.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rskd.config.section import Name, Section

Nats = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
_LEAST_IN_A_TAIL = 10  # resamples beyond an end of the interval: with fewer, its place is chance


class MarginsConfig(Section):
    """How much worse than the champion a student may be, by metric; null where the metric is not guarded."""

    lm_loss: Nats | None = Field(
        default=0.02, description="nats/token; 0.02 is 2% of perplexity, and about what another seed of training moves."
    )
    kl_to_teacher: Nats | None = Field(default=0.02, description="nats/token; as lm_loss, in the same unit.")
    acceptance: Share | None = Field(
        default=0.01, description="0.01 is one drafted token in a hundred, which speculative decoding hardly notices."
    )
    ece: Share | None = Field(
        default=0.01, description="0.01 is confidence off by one more percentage point, on average."
    )
    top1_agreement: Share | None = Field(
        default=None, description="Not guarded by default: acceptance says the same with less noise."
    )


class FloorsConfig(Section):
    """The worst value that a student may have, by metric, whatever the champion has; null where there is none.

    None by default: what is good enough depends on tokenizer, corpus and size. Set them from the first champion; they
    alone decide about that one, and they stop many small losses from adding up.
    """

    lm_loss: Annotated[float, Field(gt=0)] | None = Field(default=None, description="At most, nats/token.")
    kl_to_teacher: Annotated[float, Field(gt=0)] | None = Field(default=None, description="At most, nats/token.")
    acceptance: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, description="At least, in 0..1.")
    ece: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, description="At most, in 0..1.")
    top1_agreement: Annotated[float, Field(gt=0, lt=1)] | None = Field(default=None, description="At least, in 0..1.")


class ImprovementConfig(Section):
    """One metric, chosen beforehand, that has to be better than the champion's."""

    metric: Literal["lm_loss", "kl_to_teacher", "acceptance", "ece", "top1_agreement"] = Field(
        default="lm_loss", description="The metric that has to be better."
    )
    margin: float = Field(
        default=0.01,
        gt=0,
        description="It has to be better by more than this, in its own unit (0.01 nats/token are 1% of perplexity). "
        "Above 0: with many windows any difference shows, also one that nobody would notice.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.metric in ("acceptance", "ece", "top1_agreement") and self.margin >= 1:
            raise ValueError(f"margin={self.margin:g} of {self.metric}, which lies in 0..1: give a share, as 0.01")
        return self


class PromotionConfig(Section):
    model: Name | None = Field(
        default=None, description="Name of the registered model in MLflow; that of the distillation by default."
    )
    margins: MarginsConfig = Field(
        default=MarginsConfig(), description="How much worse than the champion a student may be; null guards nothing."
    )
    floors: FloorsConfig = Field(
        default=FloorsConfig(), description="The worst value that a student may have, whatever the champion has."
    )
    improve: ImprovementConfig | None = Field(
        default=None,
        description="One metric that has to be better than the champion's; {} takes the defaults. None by default: a "
        "student that is no worse has seen newer text.",
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1,
        description="Of the two-sided bootstrap intervals; 0.95 lets a student that is worse by just its margin "
        "pass in 2.5% of all cases.",
    )
    resamples: int = Field(
        default=10_000,
        ge=1000,
        le=1_000_000,
        description="Of the held-out windows, for the bootstrap; 10,000 leave an end of a 95% interval uncertain by 3% "
        "of a standard error.",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the bootstrap, so that a verdict repeats.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        in_a_tail = self.resamples * (1 - self.confidence) / 2
        if in_a_tail < _LEAST_IN_A_TAIL:
            raise ValueError(
                f"resamples={self.resamples} leave {in_a_tail:.2g} beyond each end of an interval of "
                f"confidence={self.confidence:g}, fewer than {_LEAST_IN_A_TAIL}: raise resamples, or lower confidence"
            )
        rules = [*self.margins.model_dump().values(), *self.floors.model_dump().values(), self.improve]
        if all(rule is None for rule in rules):
            raise ValueError("no margin, no floor and nothing to improve, so every student would pass: set one of them")
        return self
