"""What liars cost a federation, with the jury and without: attacks of firmware_sim.liars on a study's votes.

Each attack has DRAWS draws of who lies, spread over the seeds of a study. Accuracy over the rounds from the
51st on, by when the jury has seen enough; of a sleeper over its first 200 lies.
"""

import numpy as np
from votes import Federation

from edge_fi.messages import Array
from edge_fi.voting.jury import Jury
from firmware_sim import liars
from firmware_sim.stream import Stream

ROUNDS = 600
WARM = 50
DRAWS = 4  # of each federation: 20 with five seeds
STEPS = 31  # of a private gate's claim

# Name: attack, liars, whether they claim the most in place of a registered gate, whether they sleep first.
ATTACKS = {
    "nobody": ("flip", 0, False, False),
    "1 flips labels, claims most": ("flip", 1, True, False),
    "2 flip labels, claim most": ("flip", 2, True, False),
    "3 flip labels, claim most": ("flip", 3, True, False),
    "2 collude, claim most": ("collude", 2, True, False),
    "3 collude, claim most": ("collude", 3, True, False),
    "2 flip labels, registered": ("flip", 2, False, False),
    "2 collude, registered": ("collude", 2, False, False),
    "3 collude, registered": ("collude", 3, False, False),
    "1 sleeper, registered": ("flip", 1, False, True),
    "2 sleepers, registered": ("flip", 2, False, True),
    "1 sleeper, claims most": ("flip", 1, True, True),
    "2 answer one class": ("constant", 2, True, False),
    "2 answer at random": ("guess", 2, True, False),
    "2 swap two classes": ("swap", 2, True, False),
    "2 swap, registered": ("swap", 2, False, False),
    "2 copycats": ("copy", 2, True, False),
}


def attacks(federation: Federation, seed: int) -> dict[str, dict[str, float]]:
    """Of each attack: accuracy without the liars, with them, with them and the jury; and who was expelled."""
    result = {}
    for name, (kind, number, claims_most, sleeps) in ATTACKS.items():
        runs = [
            _attack(federation, kind, number, claims_most, sleeps, seed=seed, draw=draw)
            for draw in range(DRAWS if number else 1)
        ]
        result[name] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    return result


def _attack(
    federation: Federation, kind: str, number: int, claims_most: bool, sleeps: bool, *, seed: int, draw: int
) -> dict[str, float]:
    honest = federation.votes[:, :ROUNDS]
    weights = np.where(np.isfinite(federation.log_weights), federation.log_weights, -50.0)[:, :ROUNDS]
    members = len(honest)
    who = np.random.default_rng([seed, 4, draw]).permutation(members)[:number].tolist()
    claims = _as_claimed(weights) if claims_most else weights
    lies = liars.ATTACKS[kind](honest, who, Stream(f"{kind}-{seed}-{draw}")) if who else honest
    told = liars.claim_most(claims, who, float(claims.max())) if claims_most else claims
    if sleeps:
        lies, told = liars.asleep(honest, lies), liars.asleep(claims, told)
    jury, everybody = Jury(honest.shape[2]), list(range(members))
    judged, out = np.empty_like(told), np.zeros(told.shape, dtype=bool)
    for query in range(told.shape[1]):
        judged[:, query] = jury.weigh(everybody, told[:, query])
        jury.note(everybody, lies[:, query], told[:, query])
        out[list(jury.expelled), query] = True
    is_honest = np.ones(members, dtype=bool)
    is_honest[who] = False
    window = slice(liars.SLEEP, liars.SLEEP + 200) if sleeps else slice(WARM, None)
    truth = federation.truth[:ROUNDS]

    def right(weights: Array) -> float:
        return 100 * float((_pooled(lies, weights).argmax(axis=1) == truth)[window].mean())

    return {
        "without them": right(np.where(is_honest[:, None], told, -np.inf)),
        "undefended": right(told),
        "defended": right(judged),
        "honest expelled at the end": float(out[is_honest, -1].sum()),
        "liars expelled at the end": float(out[~is_honest, -1].sum()),
    }


def _pooled(votes: Array, weights: Array) -> Array:
    """The linear pool of each query, (queries, classes)."""
    shares = np.exp(weights - weights.max(axis=0))
    return np.asarray(np.einsum("kn,knc->nc", shares / shares.sum(axis=0), votes))


def _as_claimed(weights: Array) -> Array:
    """In the steps of a private gate's claim."""
    low, high = weights.min(), weights.max()
    return np.asarray(low + np.round((weights - low) / (high - low) * STEPS) * (high - low) / STEPS)
