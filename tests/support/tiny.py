"""YAMLs of runs that train in seconds."""

from pathlib import Path

TINY = """
name: {name}
data:
  train: {scenes}/train
  val: {scenes}/val
  tune: {scenes}/tune
  image_size: 32
  global_batch_size: 8
  workers: 0
model: {model}
method: {{name: {method}}}
train: {{steps: 4, lr: 1e-3, log_every: 2, save_every: 2, eval_every: 4}}
cam: {{kinds: [{kinds}], batch_size: 8}}
evaluate: {{gallery: 4}}
refine: {{workers: 1}}
"""
VIT_SIZE = "{img_size: 32, patch_size: 8, embed_dim: 16, depth: 2, num_heads: 2}"
CNN_SIZE = "{channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}"
VIT = f"{{name: vit, timm_name: vit_tiny_patch16_224, timm_options: {VIT_SIZE}}}"
CNN = f"{{name: cnn, timm_name: resnet10t, output_stride: 8, timm_options: {CNN_SIZE}}}"


def write_tiny_yaml(folder: Path, scenes: Path, method: str) -> Path:
    """A YAML that trains a method in seconds; distill wants a run in runs/teacher."""
    student = method == "distill"
    text = TINY.format(
        name="student" if student else "teacher",
        scenes=scenes,
        model=VIT if student else CNN,
        method=method,
        kinds="grad, class_map, project" if student else "class_map",
    )
    path = folder / f"{method}.yaml"
    path.write_text(text + ("teacher: runs/teacher\n" if student else ""))
    return path
