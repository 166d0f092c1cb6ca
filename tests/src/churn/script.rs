//! Which verbs a client makes: an endless sequence that its seed alone decides. It does not look at
//! answers, so that a run can be repeated whatever the machine did at the time.
//!
//! Most verbs make sense after the ones before, as if each had had its ordinary answer. Some are
//! random: the requests of a client that is mistaken, or late.

use super::{
    model::{Command, Faults, Phase, Pod, Program, SLOTS, Sandbox, Verb},
    outcomes::outcomes,
    random::Random,
};

/// How many of a hundred verbs are chosen without regard to the pod's state.
const MISTAKEN: usize = 12;
/// How many of a hundred verbs are requested twice at the same time.
const TWICE: usize = 8;
/// How many of a hundred steps are about images.
const IMAGES: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ImageVerb {
    Pull,
    Remove,
    Status,
}

impl ImageVerb {
    /// The RPC, for tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pull => "PullImage",
            Self::Remove => "RemoveImage",
            Self::Status => "ImageStatus",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A verb on the client's pod with this index; twice if the request is repeated at once, as by
    /// a client that has lost its connection.
    Pod { pod: usize, verb: Verb, twice: bool },
    /// A verb on an image: the client's own, or the one that all clients pull and remove.
    Image { verb: ImageVerb, contested: bool },
}

/// The steps of one client.
#[derive(Debug)]
pub(super) struct Script {
    random: Random,
    /// The client's pods, if every verb had its ordinary answer.
    pods: Vec<Pod>,
    /// How many images are shared among the clients.
    images: usize,
}

impl Script {
    pub(super) fn new(seed: u64, client: usize, pods: usize, images: usize) -> Self {
        let random = Random::part(seed, client as u64);
        Self { random, pods: vec![Pod::default(); pods], images }
    }

    /// All of the client's pods were removed.
    pub(super) fn forget(&mut self) {
        self.pods.fill(Pod::default());
    }

    fn any_verb(&mut self) -> Verb {
        let slot = self.random.below(SLOTS);
        let choice = self.random.below(12);
        match choice {
            0 => Verb::RunPod,
            1 => Verb::StopPod,
            2 => Verb::RemovePod,
            3 => Verb::PodStatus,
            4 => Verb::List,
            5 => self.create(slot),
            6 => Verb::Start { slot },
            7 => self.stop(slot),
            8 => Verb::Remove { slot },
            9 => Verb::Status { slot },
            10 => self.exec(slot),
            _ => self.update(slot),
        }
    }

    fn sensible_verb(&mut self, pod: &Pod) -> Verb {
        let slot = self.random.below(SLOTS);
        match pod.sandbox {
            Sandbox::Absent => Verb::RunPod,
            Sandbox::NotReady => self.random.weighted(&[
                (6, Verb::RemovePod),
                (1, Verb::StopPod),
                (1, Verb::List),
                (1, Verb::PodStatus),
                (1, Verb::Status { slot }),
                (1, Verb::Remove { slot }),
            ]),
            Sandbox::Ready => {
                let of_pod = [
                    (24, None),
                    (1, Some(Verb::StopPod)),
                    (1, Some(Verb::RemovePod)),
                    (1, Some(Verb::PodStatus)),
                    (1, Some(Verb::List)),
                ];
                let chosen = self.random.weighted(&of_pod);
                chosen.unwrap_or_else(|| self.container_verb(slot, pod.containers[slot].phase))
            }
        }
    }

    fn container_verb(&mut self, slot: usize, phase: Phase) -> Verb {
        match phase {
            Phase::Absent => self.create(slot),
            Phase::Created => {
                let update = self.update(slot);
                self.random.weighted(&[
                    (6, Verb::Start { slot }),
                    (1, update),
                    (1, Verb::Remove { slot }),
                    (1, Verb::Status { slot }),
                ])
            }
            Phase::Running => {
                let (stop, exec, update) = (self.stop(slot), self.exec(slot), self.update(slot));
                self.random.weighted(&[
                    (6, exec),
                    (3, stop),
                    (2, update),
                    (2, Verb::Status { slot }),
                    (1, Verb::Remove { slot }),
                ])
            }
            Phase::Exited(_) => {
                self.random.weighted(&[(3, Verb::Remove { slot }), (1, Verb::Status { slot })])
            }
        }
    }

    fn create(&mut self, slot: usize) -> Verb {
        let programs = [(5, Program::Patient), (1, Program::Stubborn), (3, Program::Brief)];
        let program = self.random.weighted(&programs);
        let image = self.random.below(self.images);
        Verb::Create { slot, program, shared_image: self.random.percent(25).then_some(image) }
    }

    fn stop(&mut self, slot: usize) -> Verb {
        Verb::Stop { slot, grace: self.random.weighted(&[(3, 0), (2, 1)]) }
    }

    fn exec(&mut self, slot: usize) -> Verb {
        let commands = [(6, Command::Echo), (1, Command::Fail), (1, Command::Missing)];
        Verb::Exec { slot, command: self.random.weighted(&commands) }
    }

    fn update(&mut self, slot: usize) -> Verb {
        Verb::Update { slot, shares: 200 + self.random.below(800) as i64 }
    }
}

impl Iterator for Script {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.random.percent(IMAGES) {
            let verbs = [(5, ImageVerb::Pull), (2, ImageVerb::Remove), (1, ImageVerb::Status)];
            let verb = self.random.weighted(&verbs);
            return Some(Step::Image { verb, contested: self.random.percent(30) });
        }
        let pod = self.random.below(self.pods.len());
        let before = self.pods[pod];
        let is_mistaken = self.random.percent(MISTAKEN);
        let verb = if is_mistaken { self.any_verb() } else { self.sensible_verb(&before) };
        let ordinary = outcomes(&before, verb, Faults::default());
        if let Some((_, after)) = ordinary.first() {
            self.pods[pod] = *after;
        }
        Some(Step::Pod { pod, verb, twice: self.random.percent(TWICE) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_steps_and_clients_differ() {
        let steps = |seed, client| Script::new(seed, client, 3, 2).take(500).collect::<Vec<_>>();
        assert_eq!(steps(1, 0), steps(1, 0));
        assert_ne!(steps(1, 0), steps(1, 1));
        assert_ne!(steps(1, 0), steps(2, 0));
    }

    #[test]
    fn every_verb_comes_and_most_of_them_make_sense() {
        let steps: Vec<Step> = Script::new(5, 0, 4, 2).take(20_000).collect();
        let count = |name| {
            let is_it = |step: &&Step| match step {
                Step::Pod { verb, .. } => verb.name() == name,
                Step::Image { verb, .. } => verb.name() == name,
            };
            steps.iter().filter(is_it).count()
        };
        for name in [
            "RunPodSandbox",
            "StopPodSandbox",
            "RemovePodSandbox",
            "PodSandboxStatus",
            "List",
            "CreateContainer",
            "StartContainer",
            "StopContainer",
            "RemoveContainer",
            "ContainerStatus",
            "ExecSync",
            "UpdateContainer",
            "PullImage",
            "RemoveImage",
            "ImageStatus",
        ] {
            assert!(count(name) > 100, "{name}: {}", count(name));
        }
        assert!(count("ExecSync") > count("StopPodSandbox"));
    }
}
