"""The pooler by itself, without an engine: rows that arrive in pieces, twice, or are not finite."""

import pytest

pytest.importorskip("vllm")

import numpy as np
import torch
from torch import Tensor
from vllm.v1.pool.metadata import PoolingMetadata, PoolingStates

from rskd.models.output_head import OutputHead
from rskd.rng import position_keys
from rskd.teacher.hidden_to_targets import Order, sample_rows
from rskd.teacher.sampling import Sampling
from rskd.teacher.vllm_plugin import NOT_FINITE, EngineHead, Request, SamplingPooler
from rskd.teacher.wire import pack, width

pytestmark = pytest.mark.vllm

HIDDEN, VOCAB, LENGTHS, SOFTCAP, SCALE = 8, 40, (30, 7, 19), 3.0, 0.5
ORDER = Order({"default": Sampling(num_samples=12)}, ("label_logprob",), vocab_size=33)


class Engine:
    """Requests of random hidden states, and a pooler that is shown some of their rows in each step."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = [torch.randn(length, HIDDEN, generator=generator) for length in LENGTHS]
        self.labels = [torch.randint(33, (length,), generator=generator) for length in LENGTHS]
        self.weight = torch.randn(VOCAB, HIDDEN, generator=generator)
        self.states = [PoolingStates() for _ in LENGTHS]
        texts = [labels.int().numpy().tobytes() for labels in self.labels]
        self.requests = [Request(ORDER.to_json(), row << 20, text) for row, text in enumerate(texts)]
        self.pooler = SamplingPooler(EngineHead(lambda rows: rows @ self.weight.T, VOCAB, SOFTCAP, SCALE))

    def step(self, *ranges: tuple[int, int, int]) -> list[Tensor | None]:
        """`ranges`: request, first and last row."""
        params = [self.requests[request].params for request, _, _ in ranges]
        for of_request in params:
            of_request.task = "token_classify"
        metadata = PoolingMetadata(
            prompt_lens=torch.tensor([LENGTHS[request] for request, _, _ in ranges]),
            prompt_token_ids=None,
            prompt_token_ids_cpu=None,
            pooling_params=params,
            pooling_states=[self.states[request] for request, _, _ in ranges],
        )
        metadata.build_pooling_cursor(
            np.array([end - start for _, start, end in ranges]),
            seq_lens_cpu=torch.tensor([end for _, _, end in ranges]),
            device=torch.device("cpu"),
        )
        outputs = self.pooler(torch.cat([self.hidden[request][start:end] for request, start, end in ranges]), metadata)
        assert isinstance(outputs, list)
        return outputs

    def expected(self, request: int) -> Tensor:
        head = OutputHead(self.weight * SCALE, softcap=SOFTCAP * SCALE)  # scale·cap·tanh(z/cap), written otherwise
        keys = position_keys(torch.tensor([request]), LENGTHS[request])[0]
        return pack(
            sample_rows(
                self.hidden[request],
                head,
                ORDER.samplings,
                keys,
                vocab_size=ORDER.vocab_size,
                labels=self.labels[request],
                statistics=ORDER.statistics,
            ),
            ORDER,
        )


def assert_close(found: Tensor | None, expected: Tensor) -> None:
    """Ids are equal; the last column holds the bits of a float."""
    assert found is not None
    assert torch.equal(found[:, :-1], expected[:, :-1])
    logprob, expected_logprob = (packed[:, -1:].contiguous().view(torch.float32) for packed in (found, expected))
    torch.testing.assert_close(logprob, expected_logprob)


def test_requests_in_pieces_and_in_any_order():
    engine = Engine()
    assert engine.step((0, 0, 10)) == [None]
    first, second = engine.step((1, 0, 7), (0, 10, 25))
    assert_close(first, engine.expected(1))
    assert second is None
    third, fourth = engine.step((0, 25, 30), (2, 0, 19))
    assert_close(third, engine.expected(0))
    assert_close(fourth, engine.expected(2))


def test_a_request_that_was_pushed_out_of_memory_begins_anew():
    engine = Engine()
    engine.step((0, 0, 20))
    engine.step((0, 0, 15))
    [output] = engine.step((0, 15, 30))
    assert_close(output, engine.expected(0))


def test_only_whole_numbers_are_kept_between_steps():
    engine = Engine()
    engine.step((0, 0, 20))
    assert [rows.dtype for rows in engine.states[0].hidden_states_cache] == [torch.int32]


def test_logits_that_are_not_finite_do_not_end_the_engine():
    engine = Engine()
    engine.hidden[1][3] = torch.nan
    [output] = engine.step((1, 0, 7))
    assert output is not None
    assert output.shape == (7, width(ORDER))
    assert (output[:, 0] == NOT_FINITE).all()


def test_the_dummy_requests_that_measure_memory_need_no_arguments():
    engine = Engine()
    engine.requests[0] = Request()
    [output] = engine.step((0, 0, 30))
    assert output is not None
    assert output.shape == (30, 22)
