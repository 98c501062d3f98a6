"""Register one scan to another with ANTs and warp labels. `ants_process` runs this file with the Python of another
environment; it needs antspyx only.

    python ants_worker.py version
    python ants_worker.py FIXED MOVING LABELS OUT TRANSFORM INTERPOLATOR SEED

The label map ``OUT`` lies on the grid of ``FIXED``. The program prints the seconds that it took, without start-up.
Threads: ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS.
"""

import sys
import tempfile
import time


def warp(fixed: str, moving: str, labels: str, out: str, transform: str, interpolator: str, seed: str) -> float:
    """Register ``moving`` to ``fixed``, and write ``labels``, which lie on the grid of ``moving``, to ``out``; the
    seconds that it took."""
    import ants

    begun = time.perf_counter()
    target, source = ants.image_read(fixed), ants.image_read(moving)
    ants.config.set_ants_deterministic(on=False, seed_value=int(seed))  # only the seed: "on" also means one thread
    with tempfile.TemporaryDirectory() as folder:  # by default ANTs leaves its transforms in the system's folder
        found = ants.registration(
            fixed=target, moving=source, type_of_transform=transform, outprefix=f"{folder}/moving_to_fixed_"
        )
        warped = ants.apply_transforms(
            fixed=target,
            moving=ants.image_read(labels),
            transformlist=found["fwdtransforms"],
            interpolator=interpolator,
        )
    ants.image_write(warped, out)
    return time.perf_counter() - begun


def main(arguments: list[str]) -> None:
    """Run the program."""
    if arguments == ["version"]:
        import ants

        answer = ants.__version__
    else:
        answer = str(warp(*arguments))
    sys.stdout.write(f"{answer}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
