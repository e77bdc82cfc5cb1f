"""What it means for a user when the machine, not the code, gives out: memory and disk, each with a remedy."""

import errno

# How the system says it, and how torch does when its archive was cut short.
FULL_DISK = ("no space left on device", "unexpected pos", "pytorchstreamwriter failed writing")


def remedy_for(error: BaseException) -> str | None:
    """A sentence that says what ran out and what to do; None for an error that is no want of memory or space.

    Libraries wrap the system's error: the whole chain of causes is looked at, by words where a library keeps no code.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).casefold()
        if (isinstance(seen, OSError) and seen.errno in {errno.ENOSPC, errno.EDQUOT}) or any(
            words in text for words in FULL_DISK
        ):
            return (
                "The disk is full. Free some space (old runs' folders, checkpoints that nothing needs), then resume: "
                "the run goes on from its last whole checkpoint."
            )
        # torch is not imported here: the name is enough, also of accelerators other than CUDA
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError" or "out of memory" in text:
            said = (str(seen).strip() or "on this machine").splitlines()[0][:300]
            return (
                f"Out of memory: {said}. "
                "Run it again with fewer rows per step (or the step split into more parts), shorter texts, LoRA, or "
                "bfloat16; the form's forecast says how much each needs."
            )
        seen = seen.__cause__ or seen.__context__
    return None
