//! What docker's verbs may answer, and what they make of a container.

use std::collections::BTreeSet;

/// What a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Absent,
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
}

/// How a container is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// Whether its policy is `always`.
    pub is_kept: bool,
    /// Whether its program ends at once.
    pub is_brief: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Create,
    Start,
    Stop,
    Kill,
    Restart,
    Pause,
    Unpause,
    Exec,
    Remove,
    Inspect,
}

/// How often each verb is chosen.
pub(super) const WEIGHTS: [(usize, Verb); 10] = [
    (24, Verb::Create),
    (14, Verb::Start),
    (6, Verb::Stop),
    (4, Verb::Kill),
    (3, Verb::Restart),
    (3, Verb::Pause),
    (4, Verb::Unpause),
    (4, Verb::Exec),
    (5, Verb::Remove),
    (6, Verb::Inspect),
];

/// What may explain an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// The daemon was killed since the container was last asked for.
    pub daemon: bool,
    /// A shim of the container was killed, at any time.
    pub shim: bool,
    /// A pin, a plugin or a shim was killed while the verb was made.
    pub launches: bool,
}

/// What was answered: a status, with the container's for `Inspect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Status(u16),
    Seen(Phase),
    Interrupted,
}

impl Phase {
    /// The phase that inspect calls so.
    pub(super) fn named(status: &str) -> Option<Self> {
        Some(match status {
            "created" => Self::Created,
            "running" => Self::Running,
            "paused" => Self::Paused,
            "restarting" => Self::Restarting,
            "exited" => Self::Exited,
            _ => return None,
        })
    }

    pub(super) fn has_processes(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What a container can become without that anybody asks.
fn spontaneous(phase: Phase, kind: Kind, faults: Faults) -> Vec<Phase> {
    let after_end = if kind.is_kept { Phase::Restarting } else { Phase::Exited };
    match phase {
        Phase::Running if kind.is_brief || faults.shim => vec![after_end],
        // A brief program may have ended when it was frozen.
        Phase::Paused if kind.is_brief || faults.shim => vec![after_end],
        Phase::Restarting => vec![Phase::Running],
        // A daemon that starts starts it, whoever stopped it.
        Phase::Exited if kind.is_kept && faults.daemon => vec![Phase::Restarting],
        _ => Vec::new(),
    }
}

/// The answers that a verb may have, each with what the container is then.
fn outcomes(phase: Phase, verb: Verb, kind: Kind, faults: Faults) -> Vec<(Answer, Phase)> {
    use Phase::{Absent, Created, Exited, Paused, Restarting, Running};
    let status = |status, after| vec![(Answer::Status(status), after)];
    let mut may = match (verb, phase) {
        (Verb::Create, Absent) => status(201, Created),
        (Verb::Create, _) => status(409, phase),
        (Verb::Inspect, Absent) => status(404, Absent),
        (Verb::Inspect, _) => vec![(Answer::Seen(phase), phase)],
        (_, Absent) => status(404, Absent),
        (Verb::Start, Created | Exited) => status(204, Running),
        (Verb::Start, Running | Restarting) => status(304, phase),
        (Verb::Start, Paused) => status(409, phase),
        (Verb::Stop, Created | Exited) => status(304, phase),
        (Verb::Stop, _) => status(204, Exited),
        (Verb::Kill, Created | Exited) => status(409, phase),
        (Verb::Kill, _) => status(204, Exited),
        (Verb::Restart, _) => status(204, Running),
        (Verb::Pause, Running) => status(204, Paused),
        (Verb::Pause, _) => status(409, phase),
        (Verb::Unpause, Paused) => status(204, Running),
        (Verb::Unpause, _) => status(500, phase),
        (Verb::Exec, Running) => status(201, phase),
        (Verb::Exec, _) => status(409, phase),
        (Verb::Remove, _) => status(204, Absent),
    };
    let launches = matches!(verb, Verb::Start | Verb::Restart);
    if launches && phase != Absent && (faults.launches || faults.shim) {
        // The run could not begin. A restart has stopped the container before.
        may.push((Answer::Status(500), if phase == Created { Created } else { Exited }));
    }
    if verb == Verb::Pause && phase == Running && faults.shim {
        may.push((Answer::Status(409), phase));
        may.push((Answer::Status(500), phase));
    }
    if kind.is_brief && verb == Verb::Pause && phase == Running {
        may.push((Answer::Status(409), phase));
    }
    may
}

/// What is known of a container: the phases that it may be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Belief {
    pub kind: Kind,
    phases: BTreeSet<Phase>,
}

impl Belief {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, phases: BTreeSet::from([Phase::Absent]) }
    }

    pub(super) fn phases(&self) -> impl Iterator<Item = Phase> {
        self.phases.iter().copied()
    }

    /// What is known after a verb has had this answer; `None` if that answer is not allowed.
    pub(super) fn after(&self, verb: Verb, answer: Answer, faults: Faults) -> Option<Self> {
        let mut phases = BTreeSet::new();
        for phase in self.reachable(faults) {
            let may = outcomes(phase, verb, self.kind, faults);
            match answer {
                Answer::Interrupted => {
                    // Nothing of it was done, or all of it, or the first half of a restart or a removal.
                    phases.insert(phase);
                    phases.extend(may.iter().map(|(_, after)| after));
                    let is_in_halves = matches!(verb, Verb::Restart | Verb::Remove);
                    if is_in_halves && !matches!(phase, Phase::Absent | Phase::Created) {
                        phases.insert(Phase::Exited);
                    }
                }
                answer => {
                    let allowed = may.iter().filter(|(may, _)| *may == answer);
                    phases.extend(allowed.map(|(_, after)| after));
                }
            }
        }
        (!phases.is_empty()).then_some(Self { kind: self.kind, phases })
    }

    /// The answers that a verb may have, for messages.
    pub(super) fn allowed(&self, verb: Verb, faults: Faults) -> Vec<Answer> {
        let phases = self.reachable(faults).into_iter();
        let may = phases.flat_map(|phase| outcomes(phase, verb, self.kind, faults));
        may.map(|(answer, _)| answer).collect()
    }

    /// With all phases that it may have come to by itself.
    fn reachable(&self, faults: Faults) -> BTreeSet<Phase> {
        let mut phases = self.phases.clone();
        let mut next: Vec<Phase> = phases.iter().copied().collect();
        while let Some(phase) = next.pop() {
            let come = spontaneous(phase, self.kind, faults).into_iter();
            next.extend(come.filter(|phase| phases.insert(*phase)));
        }
        phases
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Faults = Faults { daemon: false, shim: false, launches: false };
    const PLAIN: Kind = Kind { is_kept: false, is_brief: false };
    const KEPT: Kind = Kind { is_kept: true, is_brief: false };

    fn play(kind: Kind, steps: &[(Verb, Answer, Faults)]) -> Option<Vec<Phase>> {
        let mut belief = Belief::new(kind);
        for (verb, answer, faults) in steps {
            belief = belief.after(*verb, *answer, *faults)?;
        }
        Some(belief.phases().collect())
    }

    #[test]
    fn answers_narrow_down_what_is_known_and_wrong_ones_are_found() {
        let created = (Verb::Create, Answer::Status(201), NONE);
        let start = |answer| (Verb::Start, answer, NONE);
        let begun = [created, start(Answer::Interrupted)];
        assert_eq!(play(PLAIN, &begun).unwrap(), [Phase::Created, Phase::Running]);
        let again = [created, start(Answer::Interrupted), start(Answer::Status(304))];
        assert_eq!(play(PLAIN, &again).unwrap(), [Phase::Running]);
        assert_eq!(play(PLAIN, &[created, start(Answer::Status(304))]), None);
        assert_eq!(play(PLAIN, &[start(Answer::Status(204))]), None);
    }

    #[test]
    fn what_is_kept_comes_again_only_with_the_next_daemon() {
        let stopped = [
            (Verb::Create, Answer::Status(201), NONE),
            (Verb::Start, Answer::Status(204), NONE),
            (Verb::Stop, Answer::Status(204), NONE),
        ];
        let seen = |phase, daemon| {
            let look = (Verb::Inspect, Answer::Seen(phase), Faults { daemon, ..NONE });
            play(KEPT, &[stopped.as_slice(), &[look]].concat())
        };
        assert_eq!(seen(Phase::Running, false), None);
        assert_eq!(seen(Phase::Running, true).unwrap(), [Phase::Running]);
        assert_eq!(seen(Phase::Exited, false).unwrap(), [Phase::Exited]);
    }
}
