//! What is known of a pod: a set of states. Every answer narrows it down, and an answer that no
//! state allows is wrong.

use std::collections::BTreeSet;

use super::{
    model::{Answer, Faults, Pod, Verb},
    outcomes::{interrupted, outcomes, spontaneous},
};

/// The states that a pod may be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Belief {
    states: BTreeSet<Pod>,
}

impl Default for Belief {
    fn default() -> Self {
        Self { states: BTreeSet::from([Pod::default()]) }
    }
}

impl Belief {
    pub(super) fn states(&self) -> impl Iterator<Item = &Pod> {
        self.states.iter()
    }

    /// What is known after a verb has had this answer; `None` if that answer is not allowed.
    pub(super) fn after(&self, verb: Verb, answer: Answer, faults: Faults) -> Option<Self> {
        let mut states = BTreeSet::new();
        for pod in self.reachable(faults).states {
            if answer == Answer::Interrupted {
                states.extend(interrupted(&pod, verb, faults));
            }
            let allowed = outcomes(&pod, verb, faults).into_iter();
            states.extend(allowed.filter(|(may, _)| *may == answer).map(|(_, after)| after));
        }
        (!states.is_empty()).then_some(Self { states })
    }

    /// As `after`, for the same request made twice at the same time: the second joins the first,
    /// or comes after it.
    pub(super) fn after_twins(
        &self,
        verb: Verb,
        answers: [Answer; 2],
        faults: Faults,
    ) -> Option<Self> {
        let [one, other] = answers;
        let joined = (one == other).then(|| self.after(verb, one, faults)).flatten();
        let in_turn = [[one, other], [other, one]]
            .map(|[first, second]| self.after(verb, first, faults)?.after(verb, second, faults));
        let ways = in_turn.into_iter().chain([joined]).flatten();
        ways.reduce(|mut all, way| {
            all.states.extend(way.states);
            all
        })
    }

    /// The answers that a verb may have, for messages.
    pub(super) fn allowed(&self, verb: Verb, faults: Faults) -> Vec<Answer> {
        let mut found = Vec::new();
        for pod in self.reachable(faults).states {
            for (answer, _) in outcomes(&pod, verb, faults) {
                if !found.contains(&answer) {
                    found.push(answer);
                }
            }
        }
        found
    }

    /// With all states that the pod may have come to by itself.
    fn reachable(&self, faults: Faults) -> Self {
        let mut states = self.states.clone();
        let mut next: Vec<Pod> = states.iter().copied().collect();
        while let Some(pod) = next.pop() {
            next.extend(spontaneous(&pod, faults).into_iter().filter(|pod| states.insert(*pod)));
        }
        Self { states }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::churn::model::{Command, KILLED, Phase, Program, SHARES, SLOTS, Sandbox};

    const NONE: Faults = Faults { shims: [false; SLOTS], pause: false, launches: false };
    const SHIM: Faults = Faults { shims: [true; SLOTS], ..NONE };
    const CREATE: Verb = Verb::Create { slot: 0, program: Program::Patient, shared_image: None };
    const START: Verb = Verb::Start { slot: 0 };
    const STATUS: Verb = Verb::Status { slot: 0 };
    const EXEC: Verb = Verb::Exec { slot: 0, command: Command::Echo };

    /// What is known after verbs that had their ordinary answer.
    fn after(verbs: &[Verb]) -> Belief {
        verbs.iter().fold(Belief::default(), |belief, verb| {
            belief.after(*verb, Answer::Done, NONE).unwrap_or_else(|| panic!("{verb:?}"))
        })
    }

    fn status(phase: Phase) -> Answer {
        Answer::Container { phase, shares: SHARES }
    }

    #[test]
    fn each_verb_has_the_answers_of_its_state() {
        use Answer::{Done, Output, Refused};
        let ready = &[Verb::RunPod][..];
        let created = &[Verb::RunPod, CREATE][..];
        let running = &[Verb::RunPod, CREATE, START][..];
        let stopped = &[Verb::RunPod, CREATE, START, Verb::StopPod][..];
        for (before, verb, allowed) in [
            (&[][..], CREATE, &[Refused(Code::NotFound)][..]),
            (&[], Verb::StopPod, &[Done]),
            (&[], Verb::Remove { slot: 0 }, &[Done]),
            (&[], STATUS, &[Refused(Code::NotFound)]),
            (&[], EXEC, &[Refused(Code::NotFound)]),
            (ready, Verb::RunPod, &[Refused(Code::AlreadyExists)]),
            (ready, Verb::PodStatus, &[Answer::Sandbox(Sandbox::Ready)]),
            (created, CREATE, &[Refused(Code::AlreadyExists)]),
            (created, EXEC, &[Refused(Code::FailedPrecondition)]),
            (created, STATUS, &[status(Phase::Created)]),
            (running, START, &[Refused(Code::FailedPrecondition)]),
            (running, EXEC, &[Output(0)]),
            (running, STATUS, &[status(Phase::Running)]),
            (stopped, STATUS, &[status(Phase::Exited(KILLED))]),
            (stopped, START, &[Refused(Code::FailedPrecondition)]),
            (stopped, CREATE, &[Refused(Code::AlreadyExists), Refused(Code::FailedPrecondition)]),
        ] {
            assert_eq!(after(before).allowed(verb, NONE), allowed, "{verb:?} after {before:?}");
        }
    }

    #[test]
    fn an_answer_that_no_state_allows_is_wrong() {
        let running = after(&[Verb::RunPod, CREATE, START]);
        assert!(running.after(STATUS, status(Phase::Exited(KILLED)), NONE).is_none());
        assert!(running.after(EXEC, Answer::Refused(Code::Internal), SHIM).is_none());
        assert!(after(&[]).after(Verb::RunPod, Answer::Refused(Code::Internal), NONE).is_none());
    }

    #[test]
    fn an_interrupted_verb_is_done_or_not_and_the_next_answer_says_which() {
        let maybe = after(&[]).after(Verb::RunPod, Answer::Interrupted, NONE).unwrap();
        let is = |state| maybe.after(Verb::PodStatus, state, NONE);
        assert_eq!(is(Answer::Sandbox(Sandbox::Ready)), Some(after(&[Verb::RunPod])));
        assert_eq!(is(Answer::Refused(Code::NotFound)), Some(after(&[])));
        assert!(is(Answer::Sandbox(Sandbox::NotReady)).is_none());
        // A stop that was interrupted may come to its end at any time, and only once.
        let stopping = after(&[Verb::RunPod, CREATE, START])
            .after(Verb::Stop { slot: 0, grace: 1 }, Answer::Interrupted, NONE)
            .unwrap();
        let runs = stopping.after(STATUS, status(Phase::Running), NONE).unwrap();
        let ended = runs.after(STATUS, status(Phase::Exited(0)), NONE).unwrap();
        assert!(ended.after(STATUS, status(Phase::Running), NONE).is_none());
    }

    #[test]
    fn a_removal_that_was_interrupted_leaves_any_part_of_the_pod() {
        let running = after(&[Verb::RunPod, CREATE, START]);
        let left = running.after(Verb::RemovePod, Answer::Interrupted, NONE).unwrap();
        for (answer, allowed) in [
            (Answer::Listed(Sandbox::Ready, [Phase::Running, Phase::Absent]), true),
            (Answer::Listed(Sandbox::NotReady, [Phase::Exited(0), Phase::Absent]), true),
            (Answer::Listed(Sandbox::NotReady, [Phase::Absent, Phase::Absent]), true),
            (Answer::Listed(Sandbox::Absent, [Phase::Absent, Phase::Absent]), true),
            (Answer::Listed(Sandbox::Absent, [Phase::Exited(0), Phase::Absent]), false),
            (Answer::Listed(Sandbox::Ready, [Phase::Absent, Phase::Absent]), false),
        ] {
            assert_eq!(left.after(Verb::List, answer, NONE).is_some(), allowed, "{answer:?}");
        }
    }

    #[test]
    fn a_killed_shim_takes_its_container_along_and_nothing_else() {
        let running = after(&[Verb::RunPod, CREATE, START]);
        let ended = running.after(STATUS, status(Phase::Exited(KILLED)), SHIM).unwrap();
        assert_eq!(ended.allowed(Verb::PodStatus, SHIM), [Answer::Sandbox(Sandbox::Ready)]);
        assert_eq!(ended.allowed(EXEC, SHIM), [Answer::Refused(Code::FailedPrecondition)]);
    }

    #[test]
    fn of_the_same_request_twice_the_second_joins_or_comes_after() {
        use Answer::{Done, Refused};
        let exists = Refused(Code::AlreadyExists);
        for (before, verb, answers, allowed) in [
            (&[][..], Verb::RunPod, [Done, Done], true),
            (&[], Verb::RunPod, [exists, Done], true),
            (&[], Verb::RunPod, [exists, exists], false),
            (&[Verb::RunPod, CREATE], START, [Done, Refused(Code::FailedPrecondition)], true),
            (&[Verb::RunPod], Verb::RemovePod, [Done, Done], true),
            (&[Verb::RunPod], Verb::RunPod, [Done, exists], false),
        ] {
            let twins = after(before).after_twins(verb, answers, NONE);
            assert_eq!(twins.is_some(), allowed, "{verb:?} {answers:?}");
        }
    }
}
