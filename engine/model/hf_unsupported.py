"""Refuses what a Hugging Face configuration may ask for and Quire does not compute.

Invariant: a key that changes the computation is read here or in its own reader, or refused by name;
it is never ignored. Keys of other architectures are recognised by words in them, so that new ones
are refused too.
"""

import re
from collections.abc import Container

from quire.engine.json_file import JsonFile

_READ = {
    *("architectures", "model_type", "vocab_size", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"),
    *("rms_norm_eps", "tie_word_embeddings", "max_position_embeddings", "rope_theta"),
    *("rope_parameters", "rope_scaling", "partial_rotary_factor", "dtype", "torch_dtype"),
    *("quantization_config", "compression_config"),
    *("hidden_act", "attention_bias", "use_sliding_window", "layer_types", "initializer_range"),
}
_OF_ANY = {  # what files of every family say alike
    *("architectures", "model_type", "vocab_size", "tie_word_embeddings", "dtype", "torch_dtype"),
    *("quantization_config", "compression_config", "initializer_range"),
}
_WITHOUT_EFFECT = {  # on what is computed when text is made
    *("attention_dropout", "hidden_dropout", "attn_implementation", "output_attentions"),
    *("output_hidden_states", "chunk_size_feed_forward", "pruned_heads", "is_decoder"),
    *("router_aux_loss_coef", "embd_pdrop", "attn_pdrop", "resid_pdrop"),
    *("gradient_checkpointing", "pretraining_tp"),
    "temperature",  # of sampling
    *("max_window_layers", "sliding_window"),  # where an architecture has them: `WindowKeys`
}
_COMPUTES = re.compile(
    r"rope|rotary|yarn|alibi|attn|attention|sliding|window|sparse|expert|moe|router|scale|scaling"
    r"|multiplier|softcap|bias|norm|quant|compress|mlp|ffn|feed_forward|head|lora|adapter|nextn"
    r"|mtp|sink|chunk|residual|embed|activation|hidden_act|temperature|layer|mamba|ssm|conv|vision"
    r"|audio|soft_cap|logit|position|image|video|gate|gating|per_token|clip|bidirectional|kv_"
    r"|transformers_weights|configuration_files"  # what transformers reads instead of the usual
)
_DECODES_OTHERWISE: dict[
    str, tuple[object, ...]
] = {  # generation_config.json: what changes nothing
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "penalty_alpha": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "watermarking_config": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "stop_strings": ([],),
    "dola_layers": (),
    "token_healing": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
}


def refuse_unsupported(
    config: JsonFile, family_keys: Container[str] = (), *, alone: bool = False
) -> None:
    """Refuse what config.json asks for and Quire does not compute. Raises ConfigError.

    family_keys: keys of the architecture that are read elsewhere. alone: config.json is the only
    source of the shape.
    """
    if config.data.get("is_causal", True) is not True:  # null is not true to transformers
        config.refuse("is_causal", "supported: true")
    config.only("is_encoder_decoder", False)
    if not alone:
        config.only("hidden_act", "silu")
        config.only("attention_bias", False)
    read = _OF_ANY if alone else _READ
    for key, value in config.data.items():
        if key in read or key in family_keys or key in _WITHOUT_EFFECT or key.startswith("_"):
            continue
        says_nothing = value is None or value is False or value in ([], {}, "")
        if _COMPUTES.search(key) and not says_nothing:
            config.refuse(key, "is not supported")


def refuse_unsupported_decoding(defaults: JsonFile) -> None:
    """Refuse ways of decoding in generation_config.json that Quire lacks. Raises ConfigError."""
    for key, neutral in _DECODES_OTHERWISE.items():
        if defaults.has(key) and defaults.data[key] is not False:
            if not neutral:
                defaults.refuse(key, "is not supported")
            defaults.only(key, *neutral)
