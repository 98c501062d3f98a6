"""Embeddings of chosen voxels, and their map (figure 5)."""

import numpy as np
import pytest
import torch

from mre_lowshot.experiments.tsne import VOXELS, Cloud, chosen_voxels, draw_clouds, draw_embeddings, to_plane
from mre_lowshot.inference.embeddings import _patches, embeddings_at, prototypes_of
from mre_lowshot.inference.predictor import Predictor
from mre_lowshot.preprocessing.store import load_case

pytestmark = pytest.mark.usefixtures("one_thread_only", "no_settings")


def test_every_voxel_lies_in_the_inner_part_of_one_patch():
    random = np.random.default_rng(0)
    voxels, patch, size = random.integers(0, (20, 30, 9), (200, 3)), (8, 12, 9), (20, 30, 9)
    seen = []
    for start, chosen in _patches(voxels, patch, size):
        inside = voxels[chosen] - start
        assert (inside >= 0).all()
        assert (inside < patch).all()
        for axis, (side, whole) in enumerate(zip(patch, size, strict=True)):
            low, high = side // 4 if start[axis] else 0, side - side // 4 if start[axis] + side < whole else side
            assert ((inside[:, axis] >= low) & (inside[:, axis] < high)).all()
        seen += list(chosen)
    assert sorted(seen) == list(range(200))


def test_the_head_gives_the_networks_logits_from_the_embeddings(trained):
    predictor = Predictor.load(trained.model() / "fold_0", device="cpu")
    plan, network = predictor.plan, predictor.model.networks[0]
    scan = predictor.register(load_case(trained.prepared / "Tiny", "phantom_002", plan))
    calls = []
    hook = network.backbone.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    voxels = np.array([[s // 2 for s in scan.prepared.image.shape[1:]]])
    found = embeddings_at(predictor, scan, voxels)
    hook.remove()
    assert found.shape == (1, plan.network.embedding_dim)
    (patch,) = calls
    assert tuple(patch.shape[2:]) == tuple(plan.patch.size)
    prototypes = prototypes_of(predictor)
    assert prototypes.shape == (plan.network.classes, plan.network.prototypes_per_class, plan.network.embedding_dim)
    with torch.inference_mode():
        flat = torch.from_numpy(found)
        head = network.head
        logits = head.combine(head.similarities(flat), head.log_mixing(flat))[0]
    posterior = predictor.run_network(scan).posterior[(slice(None), *voxels[0])]
    # tiles of the sliding window differ from the patch around the voxel, so the posterior is near, not equal
    np.testing.assert_allclose(torch.softmax(logits, 0).numpy(), posterior, atol=0.2)


def test_a_map_has_a_point_for_each_embedding(tmp_path):
    pytest.importorskip("sklearn")
    random = np.random.default_rng(0)
    plane = to_plane(random.normal(size=(30, 5)).astype(np.float32))
    assert plane.shape == (30, 2)
    assert np.isfinite(plane).all()
    label = np.zeros((20, 20, 20), np.int16)
    label[:2], label[0, 0, 0] = 1, -1
    voxels, classes = chosen_voxels(label)
    assert (len(voxels), set(classes)) == (2 * VOXELS, {0, 1})
    assert (label[tuple(voxels.T)] == classes).all()


def test_maps_are_drawn_beside_each_other(tmp_path):
    random = np.random.default_rng(0)
    clouds = [
        Cloud("MRE-Net-1", random.normal(size=(20, 2)), np.arange(20) % 2, random.normal(size=(2, 3, 2))),
        Cloud("U-Net-1", random.normal(size=(20, 2)), np.arange(20) % 2, None),
    ]
    for count in (1, 2):
        path = tmp_path / f"{count}.png"
        draw_clouds(path, clouds[:count], {"background": 0, "liver": 1}, "a long title " * 12)
        assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_5_needs_scikit_learn_and_a_network(monkeypatch, tmp_path):
    from mre_lowshot.errors import UserError

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .* \"\.\[baselines\]\""):
        draw_embeddings(tmp_path / "a.png", [], tmp_path, device=torch.device("cpu"), title="figure5")
