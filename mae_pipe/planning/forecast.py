"""A recipe on so many GPUs: everything that can be said before the run."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from typing import Any

from mae_pipe.catalog import Catalog
from mae_pipe.costs import Costs, costs
from mae_pipe.optim import Plan
from mae_pipe.planning import fit
from mae_pipe.planning.activations import Weights, activations, on_shapes, weights_of
from mae_pipe.planning.fit import Setting
from mae_pipe.planning.machines import GB, Machines
from mae_pipe.planning.memory import Memory, memory
from mae_pipe.planning.processes import BASE, process
from mae_pipe.planning.storage import IMAGE, Storage, storage
from mae_pipe.planning.traffic import Step, Traffic, step, traffic, worlds
from mae_pipe.recipe import Pretrain


class Forecast:
    """What a recipe takes on machines; ``images`` are those of an epoch, of ``image`` bytes each."""

    def __init__(
        self, recipe: Pretrain, catalog: Catalog, machines: Machines, *, images: int, image: float = IMAGE
    ) -> None:
        self.recipe, self.catalog, self.machines = recipe, catalog, machines
        self.images, self.image = images, image
        self.plan = Plan.of(recipe, images, machines.world)
        self._activations: dict[tuple[int, int], int] = {}

    @cached_property
    def costs(self) -> Costs:
        return costs(self.recipe, self.catalog)

    @cached_property
    def weights(self) -> Weights:
        return weights_of(on_shapes(self.recipe, self.catalog))

    @cached_property
    def given(self) -> Setting:
        """The recipe's own setting."""
        engine = self.recipe.engine
        return Setting(
            engine.zero,
            self.plan.micro_batch,
            min(engine.checkpoint_blocks, self.weights.blocks),
            engine.offload_optimizer != "none",
            engine.offload_parameters != "none",
        )

    def activations(self, images: int, blocks: int) -> int:
        """Bytes; a straight line through what one image and the recipe's micro-batch hold."""
        most = max(2, self.plan.micro_batch)
        one, many = self._held(1, blocks), self._held(most, blocks)
        return one + round((many - one) * (images - 1) / (most - 1))

    def _held(self, images: int, blocks: int) -> int:
        if (images, blocks) not in self._activations:
            device = self.machines.device
            self._activations[images, blocks] = activations(
                self.recipe, self.catalog, images, blocks=blocks, device=device
            )
        return self._activations[images, blocks]

    def memory(self, setting: Setting) -> Memory:
        """Of one rank."""
        world = self.machines.world
        return memory(
            self.weights,
            setting.engine(self.recipe.engine),
            world=world,
            activations=self.activations(setting.micro_batch, setting.checkpoint_blocks),
            accumulation=self.plan.global_batch // world // setting.micro_batch,
            device=self.machines.device,
        )

    def process(self, setting: Setting) -> int:
        """Bytes of one process on a CPU, whatever they are for."""
        engine, world = setting.engine(self.recipe.engine), self.machines.world
        background = self.recipe.saving.background
        return process(self.weights, engine, self.memory(setting), world=world, background=background)

    def settings(self) -> list[tuple[Setting, Memory]]:
        """Every ZeRO stage, with and without offload and checkpointing, at the recipe's micro-batch."""
        kinds = [(1, False, False), (2, False, False), (3, False, False)]
        kinds += [(1, True, False), (2, True, False), (3, True, False), (3, True, True)]
        kinds = [kind for kind in kinds if self._can(kind[0])]
        micro = self.plan.micro_batch
        found = [Setting(z, micro, b, o, p) for b in (0, self.weights.blocks) for z, o, p in kinds]
        return [(setting, self.memory(setting)) for setting in found]

    def fits(self, needed: Memory) -> bool:
        """Whether a rank's memory does: of a GPU, and its share of the node's."""
        machines = self.machines
        if machines.device == "cpu":
            return needed.device + needed.host + BASE <= machines.host * GB / machines.gpus
        room = machines.memory * GB * fit.USABLE
        return needed.device <= room and needed.host <= machines.host * GB * fit.USABLE / machines.gpus

    def cheapest(self) -> Setting | None:
        """The cheapest setting that fits, at the largest micro-batch up to the recipe's."""
        share = self.plan.global_batch // self.machines.world
        return fit.cheapest(
            [rung for rung in fit.rungs(self.weights.blocks) if self._can(rung.zero)],
            fit.divisors(share, self.plan.micro_batch),
            self.memory,
            self.fits,
        )

    def _can(self, zero: int) -> bool:
        return zero < 3 or not self.weights.follows

    def rate(self, setting: Setting) -> float | None:
        """Images a second of one GPU by itself."""
        machines, found = self.machines, self.costs
        if machines.rate is not None or machines.tflops is None:
            return machines.rate
        again = found.forward * setting.checkpoint_blocks / max(1, self.weights.blocks)
        return machines.tflops * 1e12 * machines.utilization / (found.training + again)

    def traffic(self, setting: Setting) -> Traffic:
        """Of one rank in a step."""
        accumulation = self.plan.global_batch // self.machines.world // setting.micro_batch
        return traffic(self.weights.parameters, setting.engine(self.recipe.engine), accumulation)

    def scaling(self, setting: Setting) -> list[Step]:
        """A step on 8 to 1,024 GPUs; empty where the speed of one is not known."""
        rate, batch = self.rate(setting), self.plan.global_batch
        if rate is None:
            return []
        engine = setting.engine(self.recipe.engine)
        return [
            step(
                self.weights.parameters,
                engine,
                self.machines.links,
                world=world,
                global_batch=batch,
                micro_batch=setting.micro_batch,
                rate=rate,
            )
            for world in worlds(batch, self.machines.world)
        ]

    def hours(self, setting: Setting) -> float | None:
        """Of the whole recipe on these machines."""
        found = [one for one in self.scaling(setting) if one.world == self.machines.world]
        return self.plan.steps * self.plan.global_batch / found[0].images_per_second / 3600 if found else None

    def storage(self) -> Storage:
        weights, recipe = self.weights, self.recipe
        return storage(
            weights.parameters,
            weights.encoder,
            weights.others,
            recipe.saving,
            epochs=recipe.schedule.epochs,
            images=self.images,
            image=self.image,
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: bytes, seconds and numbers."""
        plan, chosen = self.plan, self.cheapest()
        shown = chosen or self.given

        def row(setting: Setting, needed: Memory) -> dict[str, Any]:
            return {
                **asdict(setting),
                **asdict(needed),
                "device": needed.device,
                "fits": self.fits(needed),
                "sent": self.traffic(setting).sent(self.machines.world),
            }

        return {
            "machines": asdict(self.machines) | {"world": self.machines.world},
            "batch": {
                "global": plan.global_batch,
                "micro": plan.micro_batch,
                "accumulation": plan.accumulation,
            },
            "schedule": {
                "images": plan.images,
                "steps": plan.steps,
                "warmup_steps": plan.steps_of(plan.warmup_epochs),
                "epochs": plan.epochs,
                "lr": plan.peak_lr,
            },
            "model": asdict(self.weights) | {"forward": self.costs.forward, "training": self.costs.training},
            "settings": [row(setting, needed) for setting, needed in self.settings()],
            "given": row(self.given, self.memory(self.given)),
            "processes": self.process(self.given) * self.machines.gpus if self.machines.device == "cpu" else None,
            "cheapest": None if chosen is None else row(chosen, self.memory(chosen)) | {"set": chosen.changes()},
            "scaling": [asdict(one) for one in self.scaling(shown)],
            "hours": self.hours(shown),
            "disk": asdict(self.storage()),
        }
