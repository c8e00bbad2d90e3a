"""Programmatic dependent launch (sm_90 and up): a kernel that starts while the one before it runs.

`gdc_wait` waits until the kernel before is done and all it wrote is seen; without a dependent
launch it does nothing. `gdc_launch_dependents` lets the next kernel start once every program of
this one has called it, or ended; only the first call counts. Triton has functions of these names,
but those of 3.4 do not compile.

Source: PTX ISA, griddepcontrol.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def gdc_wait():
    tl.inline_asm_elementwise(
        "griddepcontrol.wait; // dummy $0", "=r", [], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def gdc_launch_dependents():
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // dummy $0", "=r", [], tl.int32, is_pure=False, pack=1
    )
