"""Rebuild IconCanvas from nothing: python -m testbed data | train | judge | report

and its motion module, which makes clips of its pictures: python -m testbed motion | motion-report

What an encoder erased for pictures does to clips: python -m testbed transfer (--help for more)
Whether the verdicts are right, and what they cost: python -m testbed verdicts (--help for more)

Each stage continues where an earlier run stopped; `cache/` holds the intermediate files. The judge
needs those of `train`, and goes on from the trial judge if `judge --trial` was run before. Training
takes about two and a half hours on two cores. Only `data` uses the network (npm).
"""

import argparse
import sys
from importlib import import_module

from .host import process as host

STAGES = ("data", "train", "judge", "report", "motion", "motion-report", "transfer", "verdicts")


def main() -> None:
    if sys.argv[1:2] in (["transfer"], ["verdicts"]):
        # These two have options of their own.
        import_module(f".studies.{sys.argv[1]}", __package__).main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m testbed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--only", choices=("autoencoder", "text", "unet"), help="train: only this part"
    )
    parser.add_argument(
        "--further",
        action="store_true",
        help="train (text encoder and UNet) or motion: continue from the repository's weights, at "
        "a lower peak learning rate",
    )
    parser.add_argument(
        "--trial",
        action="store_true",
        help="judge: train the trial judge, which is not kept, and tell how often it is right on "
        "drawings that it never saw",
    )
    parser.add_argument("--steps", type=int, help="train, judge or motion: another number of steps")
    options = parser.parse_args()
    if options.stage == "data":
        from .model import data

        data.render()
        return
    # The host's default attention on a CPU has no fast backward pass.
    host.start("--use-pytorch-cross-attention")
    if options.stage == "report":
        from .model import report

        report.write()
        return
    if options.stage == "motion-report":
        from .motion import report as motion_report

        motion_report.write()
        return
    import torch

    from .model import checkpoint, data, train
    from .model.stage import DEVICE

    torch.set_num_threads(1)  # the workers of stage.Stage are the parallelism
    folder = data.CACHE / "train"
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"steps": options.steps} if options.steps else {}
    if options.stage == "judge":
        from .model.train_judge import train_judge

        train_judge(folder, trial=options.trial, **extra)
        return
    if options.stage == "motion":
        from .motion.train import train_motion

        train_motion(folder, further=options.further, **extra)
        return
    if options.further:
        checkpoint.unpack(folder, keep=True)
        extra["further"] = True
    stages = {
        "autoencoder": train.train_autoencoder,
        "text": train.train_text_encoder,
        "unet": train.train_unet,
    }
    if options.further:
        del stages["autoencoder"]
    for name, stage in stages.items():
        if options.only in (None, name):
            stage(folder, **{**train.AMOUNTS[DEVICE.type].get(name, {}), **extra})
    if (folder / "unet.final.pt").exists():
        checkpoint.assemble(folder)


if __name__ == "__main__":
    main()
