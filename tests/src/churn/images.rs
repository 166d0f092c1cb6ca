//! The images of a run, which share layers: each client pulls and removes one of its own, and one
//! that all of them do. Everybody makes containers of all of them.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{bail, ensure};
use serde_json::json;
use tonic::Status;

use super::{board::Board, model::Answer, report::Report, requests::is_broken, script::ImageVerb};
use crate::{
    client::Cri,
    image::{Image, Layer, busybox, gzip},
    machine::Machine,
    registry::FakeRegistry,
};

/// Whether an image may be here, and whether it may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Belief {
    here: bool,
    gone: bool,
}

impl Belief {
    const HERE: Self = Self { here: true, gone: false };
    const GONE: Self = Self { here: false, gone: true };
    const EITHER: Self = Self { here: true, gone: true };

    /// What is known after a verb was done, or was interrupted.
    fn after(self, verb: ImageVerb, done: bool) -> Self {
        let aim = match verb {
            ImageVerb::Pull => Self::HERE,
            ImageVerb::Remove => Self::GONE,
            ImageVerb::Status => return self,
        };
        if done {
            return aim;
        }
        Self { here: self.here || aim.here, gone: self.gone || aim.gone }
    }
}

#[derive(Debug)]
pub(super) struct Images {
    /// The one that stays, the one that all remove, then one of each client.
    names: Vec<String>,
    /// Of those of each client.
    beliefs: Mutex<Vec<Belief>>,
}

/// What a verb is made and watched with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tools<'a> {
    pub cri: &'a Cri,
    pub board: &'a Board,
    pub report: &'a Report,
}

/// The index of the image that all clients pull and remove.
const CONTESTED: usize = 1;

impl Images {
    /// Serves images for so many clients from registries on the machine. None is pulled.
    pub(super) fn serve(machine: &Machine, clients: usize) -> Self {
        let names = (0..clients + 2).map(|number| {
            let registry = FakeRegistry::start(machine, image(number), |_| None);
            format!("{}/image-{number}:1", registry.host)
        });
        Self { names: names.collect(), beliefs: Mutex::new(vec![Belief::GONE; clients]) }
    }

    /// The image that stays, and then the shared ones.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// How many of them are shared.
    pub(super) fn shared(&self) -> usize {
        self.names.len() - 1
    }

    /// Makes a verb on a client's image or on the contested one, again for as long as the daemon is
    /// killed meanwhile.
    ///
    /// # Errors
    /// The answer is wrong.
    pub(super) async fn perform(
        &self,
        client: usize,
        (verb, contested): (ImageVerb, bool),
        Tools { cri, board, report }: Tools<'_>,
    ) -> anyhow::Result<()> {
        let name = &self.names[if contested { CONTESTED } else { CONTESTED + 1 + client }];
        loop {
            board.served().await;
            let before = board.now();
            let clock = Instant::now();
            let result = ask(cri, verb, name).await;
            let is_interrupted = matches!(&result, Err(status) if is_broken(status));
            let answer = match &result {
                Ok(_) => Answer::Done,
                Err(_) if is_interrupted => Answer::Interrupted,
                Err(status) => Answer::Refused(status.code()),
            };
            report.verb(verb.name(), answer, clock.elapsed());
            let mut beliefs = self.beliefs.lock().unwrap_or_else(PoisonError::into_inner);
            let mut either = Belief::EITHER;
            let belief = if contested { &mut either } else { &mut beliefs[client] };
            match result {
                Ok(here) => {
                    let is_wrong =
                        here.is_some_and(|here| !(if here { belief.here } else { belief.gone }));
                    ensure!(!is_wrong, "{verb:?} of {name}: {here:?}, and {belief:?} was known");
                    *belief = belief.after(verb, true);
                    if let Some(here) = here {
                        *belief = if here { Belief::HERE } else { Belief::GONE };
                    }
                    return Ok(());
                }
                Err(status) if is_interrupted => {
                    let died = board.now().daemon_died_since(before);
                    ensure!(died, "{verb:?} of {name}: the connection broke: {status}");
                    ensure!(!board.has_failed(), "no daemon serves");
                    *belief = belief.after(verb, false);
                }
                Err(status) => bail!("{verb:?} of {name}: {status}"),
            }
        }
    }
}

/// What the response says: for ImageStatus whether it is here.
async fn ask(cri: &Cri, verb: ImageVerb, name: &str) -> Result<Option<bool>, Status> {
    match verb {
        ImageVerb::Pull => cri.pull(name).await.map(|_| None),
        ImageVerb::Remove => cri.remove_image(name).await.map(|()| None),
        ImageVerb::Status => Ok(Some(cri.image_status(name).await?.is_some())),
    }
}

/// Three layers, of which the second is this image's own.
fn image(number: usize) -> Image {
    let own = Layer::new().file("number", number.to_string().as_bytes());
    let common = Layer::new().file("common", &[b'x'; 5000]);
    let layers = [busybox(), own, common].map(|layer| {
        let tar = layer.bytes();
        let blob = gzip(&tar);
        (tar, blob)
    });
    Image::new(&layers, &json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_verb_leaves_both_and_the_next_one_decides() {
        let pulled = Belief::GONE.after(ImageVerb::Pull, false);
        assert_eq!(pulled, Belief::EITHER);
        assert_eq!(pulled.after(ImageVerb::Pull, true), Belief::HERE);
        assert_eq!(pulled.after(ImageVerb::Remove, true), Belief::GONE);
        assert_eq!(Belief::HERE.after(ImageVerb::Pull, false), Belief::HERE);
    }
}
