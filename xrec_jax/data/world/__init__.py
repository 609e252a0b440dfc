r"""The planted world: places, people and visits whose true reasons are known.

A seeded world that needs no files. It is the default data set, and the instrument that measures
whether explanations are faithful: the reasons of every visit are kept, and the best score that any
recommender can reach is computed exactly (`oracle`).

**Model.** User u, place i, and n visits made so far. The next visit goes to i with probability

    p(i | u, n) = exp(U(u, i, n) / tau) / sum over j not yet visited of exp(U(u, j, n) / tau),

the law of the largest U + tau * Gumbel among the places not visited; nobody visits a place twice.
The utility is a sum of contributions, each centred on its mean over the catalogue for that u and n
(written [.] below; a shift changes no choice):

    U = beta_T sqrt(r) ([theta_kind] + [theta_cuisine] + [theta_mood]) / s      described taste
      - beta_P [|price_i - ideal_u|]                                            price
      - beta_D lambda_u [||home_u - place_i||]                                  distance, km
      + beta_Q [q_i],  q_i ~ N(0, 1)                                            popularity
      + beta_S [A(last kind, kind_i)]                                           sequence
      + beta_T sqrt(1 - r) e_ui                                                 idiosyncratic

*   theta is the taste of u in its present state, looked up at the kind, cuisine and mood of i: 1
    and 0.7 for two liked values of each attribute, -1 for a disliked one, else 0. They are the two
    highest and the lowest of the scores sqrt(rho) P(profile_u) + sqrt(1 - rho) z, with P the sum of
    an age, a gender and an occupation vector over sqrt(3) and z the user's own, all of them
    standard normal.
*   s is the standard deviation of the described taste over the catalogue in that state, and e_ui is
    normal, scaled to mean 0 and variance 1 over the catalogue for each u. So the variance of the
    whole taste term is beta_T^2 and r = `taste_recoverability` is the share of it that attributes
    carry (up to the chance correlation of the two parts). e_ui is independent of all else: no
    attribute, no history and no other user predicts it, and a place is visited once, so even the
    visits of u do not.
*   Drift: at each visit after the first, with probability `drift`, the z of one attribute (kind,
    cuisine or mood, equally likely) are drawn anew. At rho = 1 this changes nothing.
*   A is 1 for kinds that usually follow the last one (a bar after a restaurant), -1 for the same
    kind again, else 0.
*   ideal_u = 2.4 + 0.8 (sqrt(rho) income of the occupation + sqrt(1 - rho) normal), clipped to 1
    and 4.
*   lambda_u is uniform from 0.5 to 1.5. The number of visits is `min_visits` plus a log-normal with
    the mean that is missing, capped at half the catalogue.

**Reasons.** For a pair in a state: the contributions of at least `reason_threshold`, at most three
largest, are the reasons for; those of at most minus the threshold, at most two, are against. Kind,
cuisine, mood and sequence are cited only where theta or A itself has the sign of the contribution:
a neutral kind is better than average for someone who dislikes a common one, but it is not liked.
The idiosyncratic part is never cited.

**Observable** (in `World.dataset`): visits and times; of users the age band, gender, occupation,
home district and a sentence that says these; of places the name (which says nothing else), kind,
cuisine, mood, price, district, a popularity band and a description. **Hidden:** tastes, their
states and points of drift, ideal price, sensitivity to distance, exact positions, q, e.

**Stability.** Each purpose and user has a random stream of its own. A user, visits included, does
not depend on `num_users`, nor a place on `num_items`; no place or profile depends on a strength.

**Size of the effects.** NDCG@10 on the last visit of each user, default config, seeds 0 to 2:
popularity 0.04; item neighbours 0.07 to 0.09; a linear autoencoder 0.09 to 0.10, and 0.12 to 0.15
with kind-to-kind transitions; the oracle 0.31, without the idiosyncratic part 0.24, without that
and the sequence 0.19, with neither taste nor idiosyncratic part 0.06.
"""

from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.oracle import OracleReport, choice_probabilities, oracle
from xrec_jax.data.world.reasons import Reason, Reasons, pick_reasons
from xrec_jax.data.world.utility import ATTRIBUTES
from xrec_jax.data.world.world import World, generate

__all__ = [
    "ATTRIBUTES",
    "OracleReport",
    "Reason",
    "Reasons",
    "World",
    "WorldConfig",
    "choice_probabilities",
    "generate",
    "oracle",
    "pick_reasons",
]
