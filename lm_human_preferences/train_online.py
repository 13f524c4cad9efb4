"""Training that asks people: labels come while the policy trains, and the reward model learns anew (section 2.3 of the
paper, whose code was never published).

The run and the page are two processes that meet in the study's store. `OnlineRewards.first` stands before policy
training, `before` at the beginning of each of its steps. What a step does follows from the answers alone: questions are
numbered, a label file is written once, and each reward model is a run of its own.
"""

import copy
import glob
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lm_human_preferences import train_reward
from lm_human_preferences.compute.distributed import World, generator_for
from lm_human_preferences.compute.parallel import gathered, place_frozen
from lm_human_preferences.compute.precision import Precision
from lm_human_preferences.data.label_files import load_labels
from lm_human_preferences.data.labels import label_type
from lm_human_preferences.data.queries import QueryStream, query_stream
from lm_human_preferences.data.tasks import QueryFormatter, check_task
from lm_human_preferences.foundation.configuration import to_dict
from lm_human_preferences.foundation.errors import Interrupted, UserError
from lm_human_preferences.foundation.files import remove_folder
from lm_human_preferences.judging.training_rewards import check_reward_model
from lm_human_preferences.language.encoding import Encoding, get_encoding
from lm_human_preferences.language.model_folders import load_model
from lm_human_preferences.learning.head_posterior import HeadPosterior, fit_heads
from lm_human_preferences.learning.label_losses import chance_accuracy, choice_accuracy
from lm_human_preferences.learning.policy import Policy
from lm_human_preferences.learning.ppo import PPOParams
from lm_human_preferences.learning.reward_model import RewardModel, rewards_of, states_of
from lm_human_preferences.learning.scoring import Scorer
from lm_human_preferences.people.answers import label_questions, quality_between, quality_metrics, write_first_labels
from lm_human_preferences.people.asking import HeadsAsk, choice_information
from lm_human_preferences.people.instructions import read_instructions
from lm_human_preferences.people.questions import ATTEMPTS, Author, Chooser, is_chosen, sample_questions
from lm_human_preferences.people.records import POLICY, REFERENCE
from lm_human_preferences.people.schedule import OnlineParams, questions_wanted, retraining_counts, wanted_before
from lm_human_preferences.people.simulated import Simulated, answer_open, parse_simulated
from lm_human_preferences.people.store import Store
from lm_human_preferences.people.study import check_study_folder, open_study
from lm_human_preferences.runs.folder import same_finished_run
from lm_human_preferences.runs.input_digests import input_digests
from lm_human_preferences.runs.loop import Loop
from lm_human_preferences.train_reward import RewardTrainingParams

POLL = 1.0  # seconds between looks at the answers

Ask = Callable[[int], None]  # asks until that many questions have been asked


class OnlineRewards:
    """A study and the reward models that learn from it, for one run of policy training."""

    def __init__(
        self,
        params: OnlineParams,
        new: RewardTrainingParams,
        ppo: PPOParams,
        precision: Precision,
        world: World,
        task: str,
        experiment: str,
    ):
        """new: how reward models are trained, settled. UserError, on every rank, for a study that cannot be used."""
        self.params, self.new, self.ppo = params, copy.deepcopy(new), ppo
        self.precision, self.world, self.task, self.experiment = precision, world, task, experiment
        self.save_dir = Path(new.run.save_dir)
        self.study = self.save_dir / (params.study or f"{experiment}_people")
        self.purpose = f"online/{experiment}"
        self.digest = input_digests({"model": new.task.policy.initial_model}).get("model")
        self.counts = retraining_counts(params, new.batch_size)
        self.used = 0  # the count of labels that the reward model in use learnt from; 0: the first one's
        self.seen = 0  # the newest answer that the quality was told of
        self.asked = 0  # queries that were asked about, those included whose responses stayed equal
        self.drawn = 0  # of these, taken from the stream in this process
        self.stream: QueryStream | None = None
        self.heads: HeadPosterior | None = None  # of the reward model in use, once they are needed
        self.store: Store | None = None  # rank 0's
        self.people: Simulated | None = None
        if problem := world.from_main(self._open() if world.is_main else None):
            raise UserError(problem)

    def _open(self) -> str | None:
        """Open the study; why not, where that is the user's to mend."""
        try:
            if self.params.labellers is not None:
                self.people = parse_simulated(self.params.labellers, self.new.run.seed, self.precision.device)
            check_study_folder(self.study, self.task)
            task = to_dict(self.new.task)
            self.store = open_study(self.study, self.task, self.params.people, task, settle=self.people is not None)
            if self.store.instructions() is None:
                self.store.instruct(*read_instructions(None))
        except UserError as error:
            return str(error)
        return None

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Where the run begins anew: delete what an earlier one of its name has learnt (never what people answered), or
        UserError if it may not be deleted.
        """
        if resume:
            return
        left = [folder for count in self.counts if (folder := self.reward_run(count)).exists()]
        if left and not overwrite:
            raise UserError(f"{left[0]} exists already; give another name, or --run.overwrite to replace it")
        self.world.barrier()
        if self.world.is_main:
            for folder in [*left, self.labels_file(0).parent]:
                if folder.exists():
                    remove_folder(folder)
        self.world.barrier()

    def state(self) -> dict[str, int]:
        """What a checkpoint holds of it."""
        return {"used": self.used, "seen": self.seen, "asked": self.asked}

    def resume(self, state: dict[str, int], scorer: Scorer, policy: Policy) -> None:
        """Go on from what `state` gave."""
        self.seen, self.asked = state["seen"], state["asked"]
        self.use(state["used"], scorer, policy)

    def reward_run(self, count: int) -> Path:
        """The run in which the reward model learns from `count` labels; 0: the first one."""
        return self.save_dir / (f"{self.experiment}_reward" + (f"_{count}" if count else ""))

    def labels_file(self, count: int, after: int = 0) -> Path:
        """The first `count` labels without the first `after` of them."""
        name = f"labels_{after}_{count}.json" if after else f"labels_{count}.json"
        return self.study / "training" / self.experiment / name

    # --- before policy training ---

    def first(self) -> RewardTrainingParams:
        """Ask about responses of the initial model, wait for the initial labels; returns how the first reward model is
        trained.
        """
        count = self.params.initial_labels
        if not self.world.from_main(self.labels_file(count).exists()):
            self.wait(count, 0, self.initial_questions(), None)
        return self.reward_params(count)

    def initial_questions(self) -> Ask:
        """Questions whose responses are all the initial model's."""
        task = self.new.task
        model = load_model(Path(task.policy.initial_model))
        encoding = get_encoding(model.config)
        check_task(task, encoding, model.config.n_ctx)
        policy = Policy(model, QueryFormatter([], []), task.policy.temperature).for_task(task, encoding)
        policy.to(self.precision.device).requires_grad_(False)
        authors = [Author(REFERENCE, policy, self.digest, step=0)]
        self.ask(authors, questions_wanted(self.params.initial_labels, self.params, both=False), encoding)
        return lambda count: self.ask(authors, count, encoding)

    # --- before a step ---

    def before(
        self, step: int, policy: Policy, reference: Policy, scorer: Scorer, rows: int, encoding: Encoding, loop: Loop
    ) -> dict[str, float]:
        """Ask ahead, wait for the labels that the step wants, and let the reward model learn anew where it is time;
        returns the metrics. rows: responses scored at once.
        """
        episode = step * self.ppo.batch_size
        wanted = wanted_before(episode, self.ppo.total_episodes, self.params)
        authors = [Author(REFERENCE, reference, self.digest, step=0), Author(POLICY, policy, step=step)]

        def ask(count: int) -> None:
            chooser = self.chooser(scorer, rows, encoding)
            with gathered(policy), gathered(reference):
                self.ask(authors, count, encoding, chooser)

        ask(questions_wanted(wanted, self.params, both=True))
        self.wait(wanted, step, ask, loop)
        due = [count for count in self.counts if self.used < count <= wanted]
        metrics = {"online/labels_wanted": float(wanted)}
        if due:
            save_before(step, loop)
            metrics |= self.learn(due[-1], scorer, policy, rows, encoding)
            self.drop_old(loop.run.checkpoints.keep)
        return metrics | {"online/labels_used": float(self.used or self.params.initial_labels)}

    # --- asking and waiting ---

    def ask(self, authors: Sequence[Author], count: int, encoding: Encoding, chooser: Chooser | None = None) -> None:
        """Let the authors write questions until `count` queries were asked about. All ranks write the same."""
        start = max(self.asked, self.world.from_main(self.next_number()))
        self.asked = max(start, count)
        if start >= count:
            return
        seed, task = self.new.run.seed, self.new.task
        if self.stream is None:
            self.stream = query_stream(task, encoding, seed, "online")
        if start > self.drawn:
            self.stream.batch(start - self.drawn)
        self.drawn = count
        for questions in sample_questions(
            authors,
            self.stream,
            range(start, count),
            self.params.people,
            task,
            encoding,
            self.precision,
            seed,
            self.purpose,
            in_turn=False,
            chooser=chooser,
        ):
            if self.store is not None:
                self.store.add_questions(questions)

    def chooser(self, scorer: Scorer, rows: int, encoding: Encoding) -> Chooser | None:
        """What chooses the responses to be shown by what the labels have not told the reward model; None where they are
        as they were drawn.
        """
        how = self.params.ask
        if how == "random":
            return None
        model = scorer.rewards
        assert isinstance(model, RewardModel)
        shown, heads = self.params.people.responses, self.fitted_heads(model, rows, encoding)
        choose = HeadsAsk(how, shown, heads, model, self.precision, self.new.run.seed)
        return Chooser(self.params.candidates, self.params.random_share, choose)

    def fitted_heads(self, model: RewardModel, rows: int, encoding: Encoding) -> HeadPosterior:
        """Heads on the trunk of the reward model in use that could all have given the labels it learnt from."""
        if self.heads is None:
            count = self.used or self.params.initial_labels
            kind, source = label_type(self.new.labels.type), str(self.write_labels(count))
            labels = load_labels(source, kind, self.new.task, encoding, count, learnable=False)
            states = states_of(model, labels, self.precision, rows, self.world)
            generator = generator_for(self.new.run.seed, "online/heads", count)
            self.heads = fit_heads(states, labels.target, self.params.heads, generator)
        return self.heads

    def next_number(self) -> int:
        """One more than the highest number of this run's questions; rank 0's answer counts."""
        if self.store is None:
            return 0
        rows = self.store.rows("SELECT key FROM questions WHERE key LIKE ?", f"{self.purpose}/%")
        return max((int(key.rpartition("/")[2]) + 1 for (key,) in rows), default=0)

    def wait(self, wanted: int, step: int, ask: Ask, loop: Loop | None) -> None:
        """Return when `wanted` labels are in. Where answers are not waited for, or the run is asked to stop, it is
        saved and ends. loop: None before policy training.
        """
        while True:
            have, open_questions = self.world.from_main(self.look(wanted, step))
            if have >= wanted:
                return
            if open_questions == 0:
                self.ask_more(ask)
                continue
            if not self.params.wait and self.params.labellers is None:
                self.end(wanted - have, step, loop)
            if loop is not None and loop.stop.agreed():
                save_before(step, loop)
                raise loop.stop.interrupted(step, loop.total)
            time.sleep(POLL)

    def ask_more(self, ask: Ask) -> None:
        """Ask where nobody has anything to answer. UserError if no question comes of it."""
        before = self.world.from_main(self.next_number())
        ask(self.asked + self.params.open_questions)
        if self.world.from_main(self.next_number()) == before:
            raise UserError(
                f"no question can be asked: the responses to {self.params.open_questions} queries stay the same "
                f"in {ATTEMPTS} drawings; raise --task.policy.temperature, or begin anew with a lower --ppo.lr"
            )

    def look(self, wanted: int, step: int) -> tuple[int, int]:
        """Labels that are in, and open questions; what is waited for is told to the page. Simulated people answer
        first. Rank 0's answer counts.
        """
        if self.store is None:
            return 0, 0
        have = self.store.count_labelled()
        while self.people is not None and have < wanted and answer_open(self.store, self.people, wanted - have):
            have = self.store.count_labelled()
        lack = wanted - have
        self.store.wait_for(f"The training waits for {lack:,} labels before step {step + 1:,}." if lack > 0 else "")
        return have, 0 if self.people is not None else self.store.count_answerable()

    def end(self, lack: int, step: int, loop: Loop | None) -> None:
        """End the run with what it waits for; the exit status is 0."""
        how = "the same command goes on"
        if loop is not None:
            save_before(step, loop)
            how = "all saved; the same command with --run.resume goes on"
        line = f"waiting for {lack:,} labels of {self.study} before step {step + 1:,}; {how}"
        raise Interrupted(line if self.world.is_main else "")

    # --- learning ---

    def write_labels(self, count: int, after: int = 0) -> Path:
        """The file of the first `count` labels without the first `after`, written where it is not there yet."""
        path = self.labels_file(count, after)
        if self.store is not None:
            write_first_labels(self.store, count, self.params.merge, path, after)
        self.world.barrier()
        return path

    def reward_params(self, count: int, after: int = 0) -> RewardTrainingParams:
        """How a reward model learns from the first `count` labels, or goes on with those that came `after` so many."""
        new = copy.deepcopy(self.new)
        new.labels.source, new.labels.num_train = str(self.write_labels(count, after)), count - after
        if after:
            new.initial_reward = str(self.reward_run(self.used) / "reward_model")
            new.lr = new.lr if self.params.lr is None else self.params.lr
        return new

    def learn(self, count: int, scorer: Scorer, policy: Policy, rows: int, encoding: Encoding) -> dict[str, float]:
        """Train a reward model on the first `count` labels, afresh or by going on from the one in use, and let it score
        from now on; returns how good the one before was on the labels that had come since, and how good the answers
        are.
        """
        before = self.used or self.params.initial_labels
        new = self.reward_params(count, before if self.params.learning == "continued" else 0)
        metrics = self.accuracy_on_new(count, scorer, rows, encoding)
        folder = self.reward_run(count)
        begun, finished = self.world.from_main([(folder / name).exists() for name in ("config.json", "result.json")])
        if finished:
            same_finished_run(folder, "train_reward", self.task, to_dict(new), self.world)
        else:
            new.run.resume, new.run.overwrite = begun, False
            train_reward.RewardTrainer.prepare(new, self.precision, self.world).run(self.task, folder.name)
        self.use(count, scorer, policy)
        if self.store is not None:
            found, self.seen = quality_between(self.store, self.seen, count)
            metrics |= quality_metrics(found)
        told: dict[str, float] = self.world.from_main(metrics)
        return told

    def drop_old(self, checkpoints: int) -> None:
        """Delete reward models that went on from others and that none of so many checkpoints can name: there may be
        hundreds.
        """
        if self.params.learning == "continued" and self.world.is_main:
            past = [
                folder for count in self.counts if count < self.used and (folder := self.reward_run(count)).exists()
            ]
            for folder in past[:-checkpoints]:
                remove_folder(folder)

    def use(self, count: int, scorer: Scorer, policy: Policy) -> None:
        """Score with the reward model that learnt from `count` labels; 0 keeps the first one."""
        if count:
            model = RewardModel.load(self.reward_run(count) / "reward_model")
            check_reward_model(model.transformer.config, policy.transformer.config, self.new.task)
            place_frozen(model, self.world, self.precision, self.new.run.sharding, ("states",))
            scorer.rewards = model
        self.used, self.heads = count, None

    @torch.no_grad()
    def accuracy_on_new(self, count: int, scorer: Scorer, rows: int, encoding: Encoding) -> dict[str, float]:
        """How often the reward model in use agrees with those of the first `count` labels that it has not learnt from:
        of responses that nobody chose, where `--online.ask` chooses some, since these are the ones it is least sure of.
        Then also how much a label tells, in nats, of responses that were chosen and that were not.
        """
        before = self.used or self.params.initial_labels
        after = before if self.params.learning == "continued" else 0  # what the file leaves out
        kind, source = label_type(self.new.labels.type), str(self.write_labels(count, after))
        labels = load_labels(source, kind, self.new.task, encoding, skip=before - after, learnable=False)
        model = scorer.rewards
        assert isinstance(model, RewardModel)
        metrics, measured = dict[str, float](), labels
        if self.params.ask != "random":
            chosen = torch.tensor(self.world.from_main(self.were_chosen(count))[before:])
            heads = self.fitted_heads(model, rows, encoding)
            states = states_of(model, labels, self.precision, rows, self.world)
            told = choice_information(heads.scores(states.flatten(0, 1)).unflatten(1, states.shape[:2]))
            for name, some in (("chosen", chosen), ("random", ~chosen)):
                if some.any():
                    metrics[f"online/information_{name}"] = float(told[some].mean())
            measured = labels.rows((~chosen).nonzero()[:, 0])
        metrics["online/new_labels"] = float(len(measured))
        if len(measured):
            rewards = rewards_of(model, measured, self.precision, rows, self.world)
            accuracy = choice_accuracy(rewards, measured.target)
            chance = chance_accuracy(measured.target, kind.n_responses)
            metrics["online/accuracy_new"] = accuracy
            if chance < 1:  # else all responses of all labels are alike
                error = (chance * (1 - chance) / len(measured)) ** 0.5
                metrics["online/accuracy_over_chance"] = (accuracy - chance) / error
        return metrics

    def were_chosen(self, count: int) -> list[bool]:
        """Of each of the first `count` labels whether its responses were chosen by `--online.ask`; rank 0's."""
        if self.store is None:
            return []
        return [
            question.responses[0].source == POLICY
            and (question.key or "").startswith(f"{self.purpose}/")
            and is_chosen(int((question.key or "").rpartition("/")[2]), question.kind, self.params.random_share)
            for question in label_questions(self.store, count)
        ]


def retrained(folder: Path) -> list[Path]:
    """The finished reward models after the first one of the run in `folder`, by rising numbers of labels."""
    found = {
        int(run.name.rpartition("_")[2]): run / "reward_model"
        for run in folder.parent.glob(f"{glob.escape(folder.name)}_reward_*")
        if run.name.rpartition("_")[2].isdecimal() and (run / "result.json").is_file()
    }
    return [model for _, model in sorted(found.items()) if model.is_dir()]


def save_before(step: int, loop: Loop) -> None:
    """A checkpoint to go on at `step`, where there is none yet."""
    saved = [int(folder.name) for folder in loop.run.checkpoints.all()]
    if step > loop.first and not loop.run.world.from_main(saved[-1:] == [step]):
        loop.save(step)
