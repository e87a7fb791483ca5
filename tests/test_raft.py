"""RAFT: what is done around it, with a stand-in; and what is said where torchvision is not."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from clips import bare, moving
from safetensors.torch import save_file

from tfkit import raft
from tfkit.metrics import warp_error


def stand_in(dx, dy, seen):
    """A RAFT that always sees (dx, dy), and the way back when asked the other way round."""

    def model(a, b):
        seen.append((a, b))
        sign = 1 if len(seen) % 2 else -1
        flow = torch.tensor([sign * dx, sign * dy]).view(1, 2, 1, 1).expand(1, 2, *a.shape[-2:])
        return [torch.zeros_like(flow), flow]

    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_frames_reach_it_as_it_wants_them_and_come_back_in_their_own_size(dtype):
    frames, seen = moving(3, 132, 50, dtype), []
    flow, visible = raft.estimate_flow(frames, stand_in(2.0, 0.0, seen))
    assert flow.shape == (3 - 1, 2, 132, 50) and visible.shape == (2, 132, 50)
    assert flow.dtype == torch.float32 and (flow[:, 0] == 2).all() and (flow[:, 1] == 0).all()
    assert len(seen) == 4
    a, b = seen[0]
    assert a.shape == (1, 3, 136, 128) and a.dtype == torch.float32
    assert torch.allclose(a[0, :, :132, :50], 2 * frames[0].float() - 1)
    assert torch.equal(a[0, :, :132, 50:], a[0, :, :132, 49:50].expand(3, 132, 78))
    assert torch.equal(seen[1][0], b) and torch.equal(seen[1][1], a)  # and back
    assert visible[..., :48].all() and not visible[..., 48:].any()  # those leave
    assert warp_error(frames, flow, visible) >= 0


def test_where_the_way_back_disagrees_nothing_is_visible():
    def model(a, b):
        return [torch.full((1, 2, *a.shape[-2:]), 3.0)]

    _, visible = raft.estimate_flow(moving(2, 128, 128), model)
    assert not visible.any()


def test_one_frame_has_no_flow():
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 48\); flow needs two frames"):
        raft.estimate_flow(moving(1))


@pytest.mark.parametrize("error", [None, RuntimeError("operator torchvision::nms does not exist")])
def test_a_missing_or_broken_torchvision_is_explained(error, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    if error is None:
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name.startswith("torchvision"):
                    raise error

        monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    said = r"RAFT needs torchvision.*Install the build that belongs to torch \d.*estimate_flow"
    with pytest.raises(ImportError, match=said) as caught:
        raft.load_raft()
    assert error is None or "nms does not exist" in str(caught.value)
    with pytest.raises(ImportError, match="RAFT needs torchvision"):
        raft.estimate_flow(moving(2, 128, 128))


@pytest.fixture
def torchvision(monkeypatch):
    """As much of torchvision as load_raft touches."""
    asked = {}

    def state(**settings):
        asked.update(settings)
        return {"weight": torch.full((2, 2), 7.0), "bias": torch.zeros(2)}

    def build(weights):
        assert weights is None  # loaded by its own, it would unpickle anything
        return torch.nn.Linear(2, 2)

    module = ModuleType("torchvision.models.optical_flow")
    module.raft_large = module.raft_small = build
    entry = SimpleNamespace(DEFAULT=SimpleNamespace(get_state_dict=state))
    module.Raft_Large_Weights = module.Raft_Small_Weights = entry
    models, package = ModuleType("torchvision.models"), ModuleType("torchvision")
    models.optical_flow, package.models = module, models
    for part in (package, models, module):
        monkeypatch.setitem(sys.modules, part.__name__, part)
    return asked


@pytest.mark.parametrize("size", ["large", "small"])
def test_its_weights_are_read_as_tensors_only(size, torchvision):
    model = raft.load_raft(size)
    assert torchvision == {"progress": False, "check_hash": True, "weights_only": True}
    assert (model.weight == 7).all() and not model.training and not model.weight.requires_grad


def test_weights_can_come_from_a_file(torchvision, tmp_path):
    path = tmp_path / "raft.safetensors"
    save_file({"weight": torch.full((2, 2), 5.0), "bias": torch.zeros(2)}, path)
    assert (raft.load_raft(weights=path).weight == 5).all()
    assert not torchvision
    with pytest.raises(FileNotFoundError, match=r"no weights '/nowhere.safetensors'; expected"):
        raft.load_raft(weights="/nowhere.safetensors")


def test_another_size_is_refused():
    with pytest.raises(ValueError, match=r"size='huge'; expected 'large' or 'small'"):
        bare(raft.load_raft)("huge")
