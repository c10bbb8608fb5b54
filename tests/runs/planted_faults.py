"""Faults to plant in configs, and what doctor must say of each."""

from typing import Any, NamedTuple

from tests.bundle_runs import TINY, UNET


class Fault(NamedTuple):
    """A change of a clean config, and the finding that it must give."""

    bundle: str
    change: dict[str, Any]
    level: str
    sentence: str


CLEAN: dict[str, dict[str, Any]] = {
    "mdm_pretrain": {"dataset_dir": "{place}/data", "run_dir": "{place}/new", **TINY},
    "mdm_segment": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new", "backbone": "{place}/model.pt", "head": UNET,
    },
    "mdm_evaluate": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new", "segmenter": "{place}/segment/segmenter.pt",
    },
    "mdm_infer": {
        "dataset_dir": "{place}/data", "output_dir": "{place}/new", "segmenter": "{place}/segment/segmenter.pt",
    },
    "mdm_study": {
        "dataset_dir": "{place}/data", "run_dir": "{place}/new",
        "backbones": {
            "MDM": {"path": "{place}/model.pt"}, "random": {"path": "{place}/model.pt", "initialise": "random"},
            "raw pixels": {"path": "{place}/model.pt", "initialise": "raw"},
        },
    },
}  # fmt: skip
NETWORK = {**TINY["network_def"]}
PRETRAIN = [
    ({"max_step": 9}, "error", r"Unknown key 'max_step'.*did you mean 'max_steps'"),
    ({"optimizer#lrr": 1}, "error", "'optimizer#lrr'"),
    ({"train#inferer": {"_target_": "monai.inferers.Simple"}}, "error", "'monai.inferers.Simple' cannot be found"),
    ({"max_grad_norm": "big"}, "error", "max_grad_norm must be a number of 0 or more, or null, got 'big'"),
    ({"ema_decay": 1.5}, "error", "ema_decay must be a number from 0 to below 1, got 1.5"),
    ({"log_every": "$2.5 * 1"}, "error", "log_every must be a whole number of 1 or more, got 2.5"),
    ({"keep_checkpoints": "@nothing"}, "error", "keep_checkpoints refers to @nothing, which the config does not have"),
    ({"train#sampler#rank": "@ranks"}, "error", "train#sampler#rank refers to @ranks.*did you mean 'rank'"),
    ({"checkpoint_every": "$2 +"}, "error", r"checkpoint_every is no Python expression, '\$2 \+': invalid syntax"),
    ({"preview_crops": "$undefined + 1"}, "error", "preview_crops: name 'undefined' is not defined"),
    ({"preview_every": "5"}, "error", "preview_every must be a whole number of 1 or more, got '5'"),
    ({"optimizer": {"lr": 1e-4}}, "error", "optimizer must be a part .* 'optimizer#lr' as a key changes one argument"),
    ({"objective": None}, "error", "objective must be a part .*, got null"),
    ({"network_def": {"_target_": "monai.transforms.Compose"}}, "error", "network_def is a Compose: give a network"),
    ({"loss_function": {"_target_": "monai.losses.SSIMLoss", "spatial_dims": 2}}, "warning", "data_range 1.0, but"),
    ({"terms": {"_target_": "medmdm.objectives.SelfDistillation"}}, "error", "terms must be a list of parts"),
    (
        {"terms": [{"_target_": "medmdm.objectives.SelfDistillation", "blocks": [99], "channels": [4]}]},
        "error", "there is no block 99",
    ),
    ({"probe_data_list": "{place}/data/lost.json"}, "error", "lost.png"),
    ({"device": "cuda:77"}, "error", "device 'cuda:77' cannot be used here"),
    ({"threads": 4096}, "warning", "threads is 4096"),
    ({"num_workers": 4096}, "warning", "num_workers is 4096"),
    ({"accumulation_steps": 3}, "error", "batch_size 4 cannot be cut into 3 micro-batches"),
    ({"preview_timesteps": [10, 1000]}, "error", "preview_timesteps holds 1000"),
    ({"warmup_steps": 6}, "warning", "warmup_steps 6 is not below max_steps 6"),
    ({"learning_rate": 0}, "warning", "learning_rate is 0"),
    ({"patch_size": 7}, "error", r"An image of \(16, 16\) pixels cannot be cut into patches of \(7, 7\)"),
    ({"crop_size": [17, 17], "patch_size": 17}, "error", "cannot read crops|17"),
    ({"network_def": {**NETWORK, "num_groups": 5}}, "error", "32 with channel_mult"),
    ({"network_def": {**NETWORK, "num_head_channels": 15}}, "error", "num_head_channels 15 does not divide"),
    ({"network_def": {**NETWORK, "in_channels": 1}}, "error", r"expected \[batch, 1, height, width\]"),
    ({"target": "noise"}, "error", "target 'noise' needs a corruption that adds noise"),
    ({"label_as": "regions"}, "error", "PatchMasking takes no regions of an image"),
    ({"loss_function": {"_target_": "medmdm.objectives.SSIMLoss", "data_range": 1.0}}, "warning", "data_range 1.0"),
    ({"loss_function": {"_target_": "torch.nn.BCELoss"}}, "error", "between 0 and 1"),
    ({"intensity_range": [9, 3]}, "error", r"intensity_range is \[9, 3\]"),
    ({"intensity_range": [0, 1]}, "error", "lie outside the values that become -1 and 1"),
    ({"percentiles": [99, 1]}, "error", "0 <= lower < upper <= 100"),
    ({"spacing": 0.5}, "error", "pixel spacing of .* is not known"),
    ({"channels": 1, "network_def": {**NETWORK}}, "error", "3 channels, but channels is 1"),
    ({"dataset_dir": "{place}/nowhere"}, "error", "nowhere"),
    ({"data_list": "{place}/data/broken.json"}, "error", "broken.json"),
    ({"data_list": "{place}/data/lost.json"}, "error", "lost.png"),
    ({"data_list": "{place}/data/damaged.json"}, "error", "cut.png"),
    ({"data_list": "{place}/data/empty.json"}, "error", "empty.png is empty"),
    ({"data_list": "{place}/data/masks.json"}, "warning", "1 training image is named as masks are"),
    ({"data_list": "{place}/data/copied.json"}, "error", "copy.png"),
    ({"data_list": "{place}/data/shared.json"}, "warning", "patients who are also in training"),
    ({"batch_size": 400}, "warning", "batch_size 400 is more than 4 images of about 6 crops"),
    ({"crop_size": [64, 64]}, "warning", "smaller than crop_size"),
    ({"batch_size": 400_000_000}, "error", "memory: about .* choose a smaller batch_size"),
    ({"keep_checkpoints": 10**12}, "error", "disk: about .* free some"),
    ({"max_steps": 10**15, "batch_size": 4}, "warning", "time: roughly .* years"),
    ({"run_dir": "{place}/file/run"}, "error", "run_dir .* cannot be made"),
    ({"run_dir": "{place}/other"}, "error", "holds a run of another configuration"),
]  # fmt: skip
TOO_SHORT = {"_target_": "medmdm.heads.Training", "steps": 0}
OTHERS = [
    ("mdm_segment", {"head#trainin": 1}, "error", "'head#trainin'"),
    ("mdm_segment", {"backbone": "{place}/nowhere.pt"}, "error", "nowhere.pt: there is no such file"),
    ("mdm_segment", {"backbone": "{place}/cut.pt"}, "error", "cut.pt"),
    ("mdm_segment", {"backbone": "{place}/segment/segmenter.pt"}, "error", "this is a segmenter, not a backbone"),
    ("mdm_segment", {"backbone": "{place}/spaced.pt", "preprocessing#spacing": [1.0, 1.0],
                     "head": {"_target_": "medmdm.heads.FineTuning"}}, "warning", "#spacing is .* may not fit"),
    ("mdm_segment", {"backbone": "{place}/spaced.pt"}, "error", "pixel spacing of .* is not known"),
    ("mdm_segment", {"shots": 9}, "error", "9"),
    ("mdm_segment", {"section": "validation"}, "error", "There is no validation case to evaluate"),
    ("mdm_segment", {"dataset_dir": "{place}/grey", "data_list": "{place}/data/dataset.json"}, "error", "are not in"),
    ("mdm_segment", {"data_list": "{place}/data/unlabelled.json"}, "error", "training"),
    ("mdm_segment", {"data_list": "{place}/data/values.json"}, "error", "seven.png holds 7"),
    ("mdm_segment", {"data_list": "{place}/data/shared.json"}, "warning", "patients who are also in training"),
    ("mdm_segment", {"blocks": [99]}, "error", "99"),
    ("mdm_segment", {"timesteps": [5000]}, "error", "5000"),
    ("mdm_segment", {"head": {**UNET, "network": {**UNET["network"], "out_channels": 5}}}, "error", r"\[5, 16, 16\]"),
    ("mdm_segment", {"head": {**UNET, "network": {**UNET["network"], "strides": []}}}, "error", "strides"),
    ("mdm_segment", {"head": {**UNET, "training": TOO_SHORT}}, "error", "steps"),
    ("mdm_segment", {"study": "{place}/study.csv"}, "error", "study.csv"),
    ("mdm_segment", {"write_formats": {"_target_": "medmdm.segment.COCO"}}, "error", "write_formats must be a list"),
    ("mdm_evaluate", {"segmenter": "{place}/model.pt"}, "error", "the weights of a backbone"),
    ("mdm_evaluate", {"section": "validation"}, "error", "validation"),
    ("mdm_evaluate", {"write_uncertainty": "maybe"}, "error", "write_uncertainty must be true or false"),
    ("mdm_evaluate", {"report": 3}, "error", "report must be true or false, got 3"),
    ("mdm_infer", {"write_boxs": True}, "error", "did you mean 'write_boxes'"),
    ("mdm_study", {"draws": 0}, "error", "draws must be a whole number of 1 or more, got 0"),
    ("mdm_infer", {"segmenter": "{place}/nowhere.pt"}, "error", "nowhere.pt: there is no such file"),
    ("mdm_infer", {"image_spacing": -1}, "error", "image_spacing must be"),
    ("mdm_infer", {"dataset_dir": "{place}/grey"}, "error", "channel"),
    ("mdm_infer", {"dataset_dir": "{place}/ct"}, "error", "a.nii.gz is a volume, but the backbone was"),
    ("mdm_infer", {"write_formats": [{"_target_": "medmdm.segment.DicomSeg"}]}, "error", "0.png is no DICOM series"),
    ("mdm_infer", {"dataset_dir": "{place}/slides"}, "error", "made.tif does not say how large its pixels are"),
    ("mdm_infer", {"backbone": "{place}/model.pt"}, "error", "network trained from scratch"),
    ("mdm_study", {"shots": [2, 9]}, "error", "shots asks for 9"),
    ("mdm_study", {"reference": ["MDM", "clasifier"]}, "error", "did you mean 'classifier'"),
    ("mdm_study", {"only": {"rigde": ["MDM"]}}, "error", "only names 'rigde'"),
    ("mdm_study", {"backbones#random#initialise": "randm"}, "error", "initialise is 'randm'"),
    ("mdm_study", {"heads": {"ridge": {"method": "ridge"}}}, "error", "heads#ridge must be a part"),
    ("mdm_study", {"backbones": {"MDM": "{place}/model.pt"}}, "error", "backbones#MDM must be a backbone"),
    ("mdm_study", {"cache_gib": 10**9}, "warning", "cached features may take"),
]  # fmt: skip
FAULTS = [Fault("mdm_pretrain", *fault) for fault in PRETRAIN] + [Fault(*fault) for fault in OTHERS]
#: Where these are wrong, others cannot be looked at, or it is the machine that says it.
HIDING = {
    "dataset_dir", "data_list", "backbone", "segmenter", "section", "crop_size", "channels", "batch_size", "max_steps",
    "target", "percentiles", "intensity_range", "blocks", "timesteps", "head", "backbones#random#initialise",
    "objective", "optimizer", "terms", "backbones", "heads", "label_as",
}  # fmt: skip
#: Settings of the clean configs that may be changed in company.
MAY_CHANGE = {"network_def", "log_every", "run_dir"}
#: Of one config; what each is answered with.
IN_ONE_CONFIG: dict[str, tuple[Any, str]] = {
    "max_stepps": (1, "did you mean 'max_steps'"),
    "handlerz": ([], "Unknown key 'handlerz'"),
    "extra_keys": ("none", "extra_keys must be a list of texts"),
    "seed": (1.5, "seed must be a whole number"),
    "stain_jitter": (-1, "stain_jitter must be a number of 0 or more"),
    "slice_axis": ("diagonal", "slice_axis must be .axial."),
    "learning_rate": (-1, "learning_rate must be a number of 0 or more, got -1"),
    "warmup_steps": (-2, "warmup_steps must be"),
    "max_grad_norm": ("big", "max_grad_norm must be"),
    "ema_decay": (1.5, "ema_decay must be"),
    "amp_dtype": ("float17", "did you mean 'float16'"),
    "compile": ("yes", "compile must be true or false"),
    "cache_gib": (-1, "cache_gib must be"),
    "terms": ({"_target_": "medmdm.objectives.SelfDistillation"}, "terms must be a list of parts"),
    "preview_every": ("5", "preview_every must be a whole number of 1 or more, got '5'"),
    "corruption#patchsize": (3, "did you mean 'patch_size'"),
    "loss_function#losses#1#_target_": ("medmdm.objectives.L3Loss", "'medmdm.objectives.L3Loss' cannot be found"),
    "network_def#modell_channels": (3, "did you mean 'model_channels'"),
    "optimizer#lrr": (1, "did you mean 'lr'"),
    "lr_scheduler#optimizr": (1, "did you mean 'optimizer'"),
    "train#inferer": ({"_target_": "monai.inferers.Simple"}, "'monai.inferers.Simple' cannot be found"),
    "checkpoint_every": ("$2 +", "checkpoint_every is no Python expression"),
    "keep_checkpoints": ("@nothing", "refers to @nothing"),
    "train#sampler#rank": ("@ranks", "refers to @ranks.*did you mean 'rank'"),
    "log_every": ("$2.5 * 1", "log_every must be a whole number of 1 or more, got 2.5"),
    "preview_crops": ("$undefined", "preview_crops: name 'undefined'"),
    "device": ("cuda:77", "device 'cuda:77' cannot be used here"),
    "threads": (4096, "threads is 4096"),
    "num_workers": (4096, "num_workers is 4096"),
    "accumulation_steps": (3, "cannot be cut into 3 micro-batches"),
    "preview_timesteps": ([10, 1000], "preview_timesteps holds 1000"),
    "intensity_range": ([9, 3], "low below high"),
    "patch_size": (7, "cannot be cut into patches of .7, 7."),
    "network_def#num_groups": (5, "with 5 groups needs multiples of 5"),
    "probe_data_list": ("{place}/nowhere.json", "nowhere.json does not exist"),
    "run_dir": ("{place}/file/run", "run_dir .* cannot be made"),
}
