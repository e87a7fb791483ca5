"""Models in every layout of the hub's, and what is refused, in which words and how quickly."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import diffusers
import pytest
import torch
import transformers
from fakehub import serve
from pipelines import SCHEDULERS, make_pipeline, make_unet

import tfkit
from tfkit import loading

CONFIG = "scheduler/scheduler_config.json"


def load(folder, **options):
    return tfkit.load(folder, device="cpu", **options)


@pytest.fixture
def variation(pipeline_folder, tmp_path):
    """A copy of the plain pipeline to change: its files are links, unlinked where written."""
    folder = tmp_path / "copy"
    shutil.copytree(pipeline_folder, folder, copy_function=os.link)

    def write(path, content):
        (folder / path).unlink(missing_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    folder_and_write = folder, write
    return folder_and_write


def change(path, **values):
    return json.dumps({**json.loads(path.read_text()), **values})


# --- every layout -------------------------------------------------------------------------------

LAYOUTS = {
    "fp16 only": {"variant": "fp16"},
    "sharded": {"sharded": True},
    "sharded fp16 only": {"sharded": True, "variant": "fp16"},
    "v, factor 4": {"prediction_type": "v_prediction", "vae_factor": 4},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads_whole_and_in_silence(tmp_path, layout, capfd):
    options = LAYOUTS[layout]
    folder = make_pipeline(tmp_path, **options)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load(folder)
    assert capfd.readouterr() == ("", "")
    made = make_unet(family="2.x" if "v" in layout.split(",") else "1.x").state_dict()
    tolerance = 2e-3 if "variant" in options else 0
    for name, weight in model.unet.state_dict().items():
        torch.testing.assert_close(weight, made[name], rtol=0, atol=tolerance)
    assert model.factor == options.get("vae_factor", 8) and model.sample_size == 16 * model.factor
    assert model.scheduler.config.prediction_type == options.get("prediction_type", "epsilon")
    parts = (model.unet, model.vae, model.text_encoder)
    weights = [weight for part in parts for weight in part.parameters()]
    assert not any(part.training for part in parts)
    assert all(w.dtype == torch.float32 and not w.requires_grad for w in weights)


def test_progress_bars_are_left_as_they_were(pipeline_folder):
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [log.is_progress_bar_enabled() for log in logs]
    diffusers.utils.logging.enable_progress_bar()
    try:
        load(pipeline_folder)
        assert diffusers.utils.logging.is_progress_bar_enabled()
        assert transformers.utils.logging.is_progress_bar_enabled() == before[1]
    finally:
        if not before[0]:
            diffusers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_scheduler_of_the_hub_becomes_its_ddim(variation, name):
    """Among them the fork saved by PNDMScheduler, whose DDIM would clip samples by default."""
    folder, write = variation
    write(CONFIG, json.dumps(SCHEDULERS[name]))
    model = load(folder)
    config = model.scheduler.config
    assert not config.clip_sample and not config.thresholding and not config.set_alpha_to_one
    assert model.timesteps(50) == tuple(range(981, 0, -20))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(model.scheduler.alphas_cumprod, (1 - betas).cumprod(0))
    assert model.alpha(None) == model.alpha(0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_vae_stays_out_of_half_precision(pipeline_folder, dtype):
    model = load(pipeline_folder, dtype=dtype)
    half = dtype != torch.float64
    assert {p.dtype for p in model.unet.parameters()} == {dtype}
    assert {p.dtype for p in model.text_encoder.parameters()} == {dtype}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32 if half else dtype}
    assert model.precision == (torch.float32 if half else dtype)


def test_the_half_variant_is_read_where_half_is_asked_for(tmp_path):
    folder = make_pipeline(tmp_path / "a")
    other = make_pipeline(tmp_path / "b", variant="fp16", seed=1)
    for part in ("unet", "vae", "text_encoder"):
        for file in (other / part).glob("*.fp16.safetensors"):
            shutil.copy(file, folder / part)
    half, whole = (load(folder, dtype=dtype) for dtype in (torch.float16, torch.float32))
    name = "conv_in.weight"
    assert torch.equal(whole.unet.get_parameter(name), make_unet().get_parameter(name))
    expected = make_unet(seed=1).get_parameter(name).half()
    assert torch.equal(half.unet.get_parameter(name), expected)


# --- the hub ------------------------------------------------------------------------------------

SCRIPT = """
import sys, time, tfkit
def attempt(name, **options):
    start = time.perf_counter()
    try:
        print(repr(tfkit.load(name, device="cpu", **options)))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
    print(f"{time.perf_counter() - start:.1f}", flush=True)
attempt("someone/tiny")
attempt("someone/inpainting")
attempt("no/body")
sys.stdin.readline()
attempt("someone/tiny")
attempt("no/body")
"""


def test_a_hub_id_is_fetched_once_and_then_found_without_the_hub(tmp_path):
    """Only what is read is fetched; a hub out of reach is no reason to wait."""
    folder = make_pipeline(tmp_path / "tiny")
    for part in ("unet", "vae"):
        name = folder / part / "diffusion_pytorch_model"
        shutil.copy(f"{name}.safetensors", f"{name}.non_ema.safetensors")
        shutil.copy(f"{name}.safetensors", f"{name}.fp16.safetensors")
        (folder / part / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (folder / "v1-5-pruned.ckpt").write_bytes(b"pickled")
    painting = tmp_path / "inpainting"
    shutil.copytree(folder, painting)
    (painting / "unet" / "config.json").write_text(
        change(folder / "unet" / "config.json", in_channels=9)
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0",
                   "HF_HOME": str(tmp_path / "cache")}  # fmt: skip
    with serve({"someone/tiny": folder, "someone/inpainting": painting}) as (
        address,
        fetched,
        stop,
    ):
        environment["HF_ENDPOINT"] = address
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT], text=True, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=loading.__file__.rsplit("/", 2)[0],
        )  # fmt: skip
        answers = [process.stdout.readline().strip() for _ in range(6)]
        stop()
        rest, errors = process.communicate("\n", timeout=120)
    answers += rest.split("\n")
    assert answers[0].startswith("LatentDiffusion('someone/tiny', UNet of 2.4 M"), errors
    assert answers[2].startswith(
        "ValueError: 'someone/inpainting' is no Stable Diffusion 1.x, 2.x or XL"
    )
    assert answers[4].startswith("FileNotFoundError: no model 'no/body': expected 'menagerie'")
    assert answers[6] == answers[0]
    assert "'no/body': there is no such folder, the cache has none of this id" in answers[8]
    assert all(float(seconds) < 10 for seconds in answers[1:10:2]), answers
    weights = [name for name in fetched if not name.endswith((".json", ".txt"))]
    assert sorted(weights) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "name, kind, message",
    [
        ("no such thing", FileNotFoundError, r"no model 'no such thing': expected 'menagerie', a"),
        (
            "/nowhere/at/all",
            FileNotFoundError,
            r"'/nowhere/at/all': expected 'menagerie', a folder",
        ),
        ("../a/b", FileNotFoundError, r"the id of a model on the hub .* such as stable-diff"),
        ("some/model", FileNotFoundError, r"'some/model': there is no such folder, .* be reached"),
        ("", ValueError, r"model '': expected 'menagerie', a folder, or a hub id"),
        (None, ValueError, r"model None: expected"),
        (5, ValueError, r"model 5: expected"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(name, kind, message):
    with pytest.raises(kind, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options, message",
    [
        ({"dtype": "float16"}, r"dtype='float16': expected torch.float16, bfloat16, float32 or"),
        ({"dtype": torch.int8}, r"dtype=torch.int8: expected"),
        ({"dtype": torch.float8_e4m3fn}, r"dtype=torch.float8_e4m3fn: expected"),
        ({"device": "gpu"}, r"device='gpu' cannot be used here .*; expected 'cpu', or 'cuda'"),
        ({"device": "cuda:99"}, r"device='cuda:99' cannot be used here"),
        ({"device": 1.5}, r"device='1.5' cannot be used here"),
        ({"device": "meta"}, r"device='meta' cannot be used here"),
    ],
)
def test_what_cannot_run_here_is_refused(pipeline_folder, options, message):
    with pytest.raises(ValueError, match=message):
        tfkit.load(pipeline_folder, **{"device": "cpu"} | options)


def test_pickled_weights_are_refused_with_the_cure(tmp_path):
    folder = make_pipeline(tmp_path, safetensors=False)
    message = r"unet/diffusion_pytorch_model.bin is pickled .* refused. .*save_pretrained\(folder\)"
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_file_is_refused_with_the_cure(tmp_path):
    file = tmp_path / "v1-5-pruned.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=r"pruned.safetensors' is a file; .*from_single_file"):
        load(file)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(variation, part):
    folder, _ = variation
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=rf"has no folder '{part}'; expected Stable"):
        load(folder)
    (folder / part).mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=part) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"addition_embed_type": "image"}, r"takes 4 channels and image added conditions"),
        ({"in_channels": 9}, r"is no Stable Diffusion 1.x, 2.x or XL: its UNet takes 9 channels a"),
    ],
)
def test_other_topologies_are_refused(variation, values, message):
    folder, write = variation
    write("unet/config.json", change(folder / "unet" / "config.json", **values))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "path", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
             "vae/diffusion_pytorch_model.safetensors", "unet/config.json", CONFIG]
)  # fmt: skip
def test_a_damaged_file_is_laid_at_its_parts_door(variation, path):
    folder, write = variation
    whole = (folder / path).read_bytes()
    write(path, whole[: len(whole) // 2])
    with pytest.raises((ValueError, FileNotFoundError), match="cannot read the") as caught:
        load(folder)
    message = str(caught.value)
    assert f"the {path.split('/')[0]} of '{folder}'" in message and "\n" not in message
