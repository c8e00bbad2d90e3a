"""Quantized weights in a Hugging Face config.json.

Invariant: a format is supported as a whole or refused by name, with what is supported; an option
that changes what its numbers mean is understood or refused by its path.
"""

from pathlib import Path

from quire.engine.errors import ConfigError
from quire.engine.json_file import JsonFile
from quire.engine.model.config import Fp8

SUPPORTED = (
    "supported: float32, bfloat16 and float16, and fp8 (e4m3 in blocks of 128 x 128, "
    "dynamic activations)"
)
_NAMES = {  # by quant_method; what is not named here is called by its own name
    "awq": "AWQ",
    "gptq": "GPTQ",
    "gguf": "GGUF",
    "modelopt": "ModelOpt (NVFP4 and others)",
    "modelopt_fp4": "NVFP4",
    "nvfp4": "NVFP4",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "MXFP4",
    "fbgemm_fp8": "FBGEMM FP8 (a scale a row)",
}
_READ = {
    *("quant_method", "fmt", "activation_scheme", "weight_block_size", "modules_to_not_convert"),
    *("ignored_layers", "dequantize", "scale_fmt", "expert_dtype", "modules_to_convert"),
}


def read_quantization(config: JsonFile) -> Fp8 | None:
    """The format of the weights, or None where they are not quantized. Raises ConfigError."""
    if config.has("compression_config"):
        config.refuse("compression_config", f"compressed-tensors is not supported; {SUPPORTED}")
    section = config.section("quantization_config")
    if section is None:
        return None
    method = section.string("quant_method", None)
    if method is None:
        config.refuse("quantization_config", f"has no quant_method; {SUPPORTED}")
    if method != "fp8":
        name = _NAMES.get(method.lower(), "this format")
        section.refuse("quant_method", f"{name} is not supported; {SUPPORTED}")
    return _fp8(section)


def refuse_other_files(directory: Path) -> None:
    """Refuse formats that config.json says nothing of. Raises ConfigError."""
    modelopt = directory / "hf_quant_config.json"
    if modelopt.exists():
        raise ConfigError(f"{modelopt}: ModelOpt (NVFP4 and others) is not supported; {SUPPORTED}")
    adapter = directory / "adapter_config.json"
    if adapter.exists():
        raise ConfigError(f"{adapter}: adapters are not supported; merge it into the weights")
    files = sorted(directory.glob("*.gguf"))
    if files and not any(directory.glob("*.safetensors")):
        raise ConfigError(f"{files[0]}: GGUF is not supported; {SUPPORTED}, as safetensors")


def _fp8(section: JsonFile) -> Fp8:
    section.only("fmt", "e4m3", "float8_e4m3fn")
    section.only("activation_scheme", "dynamic")
    section.only("weight_block_size", [128, 128])
    section.only("dequantize", False)
    section.only("scale_fmt", "float")
    section.only("expert_dtype", "fp8")
    section.only("modules_to_convert", [])
    if section.data.get("weight_block_size", [128, 128]) is None:
        section.refuse("weight_block_size", "supported: [128, 128]")
    for key in filter(section.has, section.data):
        if key not in _READ:
            section.refuse(key, f"unknown for fp8; known: {', '.join(sorted(_READ))}")
    lists = {key: _names(section, key) for key in ("modules_to_not_convert", "ignored_layers")}
    first, second = lists.values()
    if first and second and set(first) != set(second):
        section.refuse("ignored_layers", "contradicts modules_to_not_convert")
    return Fp8(skipped=first or second)


def _names(section: JsonFile, key: str) -> tuple[str, ...]:
    names = section.data.get(key)
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        section.refuse(key, "must be a list of modules' names")
    return tuple(dict.fromkeys(names))
