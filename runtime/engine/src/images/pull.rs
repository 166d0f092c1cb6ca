//! Pulls, with a line of JSON for each step of a layer, as dockerd tells them.

use std::{collections::BTreeSet, sync::Arc};

use berth_base::error::{Error, Kind};
use berth_image::{AuthConfig, Digest, LayerProgress, LayerStep, watch};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
};

use crate::{
    engine::Engine,
    http::error::{Failure, Result},
    image_name, progress,
};

/// A full name, `docker.io/library/busybox:latest`, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reference {
    /// `docker.io/library/busybox`
    pub repository: String,
    /// A tag or a digest.
    pub target: String,
}

impl Reference {
    pub(crate) fn parse(full: &str) -> Self {
        let (repository, target) = match full.split_once('@') {
            Some((repository, digest)) => (repository, digest),
            None => full.rsplit_once(':').unwrap_or((full, "latest")),
        };
        Self { repository: repository.to_owned(), target: target.to_owned() }
    }

    pub(crate) fn joined(&self) -> String {
        let mark = if self.target.contains(':') { '@' } else { ':' };
        format!("{}{mark}{}", self.repository, self.target)
    }

    /// As events and the last line name it.
    pub(crate) fn shown(&self) -> String {
        image_name::familiar(&self.joined()).to_owned()
    }

    /// What a pull is known by in its lines: the tag, or the whole name where it has a digest.
    pub(crate) fn line_id(&self) -> String {
        match self.target.contains(':') {
            true => self.shown(),
            false => self.target.clone(),
        }
    }

    /// Without the host.
    pub(crate) fn path(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(_, path)| path)
    }
}

/// A pull that runs, and the reports of its layers.
pub(crate) struct Pull {
    pub engine: Arc<Engine>,
    pub reference: Reference,
    ended: JoinHandle<Result<Digest, Error>>,
    layers: mpsc::Receiver<LayerProgress>,
    /// What the name meant before.
    before: Option<Digest>,
    /// The first report, or else the result.
    begun: Begun,
}

enum Begun {
    Layer(LayerProgress),
    Ended(Digest),
}

/// What came of a pull.
pub(crate) struct Pulled {
    pub id: Digest,
    pub is_new: bool,
}

impl Pull {
    /// Begins a pull, and waits until there is something to be told of it.
    ///
    /// # Errors
    /// What the registry says.
    pub(crate) async fn begin(
        engine: Arc<Engine>,
        reference: Reference,
        auth: AuthConfig,
    ) -> Result<Self> {
        let images = engine.node.host.images.clone();
        let name = reference.joined();
        let before = images.find(&name).ok().flatten().map(|image| image.id.clone());
        let (watched, mut layers) = watch();
        let pulling = async move { images.pull_watched(&name, auth, watched).await };
        let mut ended = tokio::spawn(pulling);
        let begun = tokio::select! {
            biased;
            Some(layer) = layers.recv() => Begun::Layer(layer),
            result = &mut ended => Begun::Ended(joined(result, &reference)?),
        };
        Ok(Self { engine, reference, ended, layers, before, begun })
    }

    /// Sends a line for every report, and the digest. A client that is gone changes nothing.
    ///
    /// # Errors
    /// As for `begin`.
    pub(crate) async fn tell(mut self, lines: &mpsc::Sender<Value>) -> Result<Pulled> {
        let reference = &self.reference;
        let status = format!("Pulling from {}", reference.path());
        let _ = lines.send(json!({ "status": status, "id": reference.line_id() })).await;
        let (mut next, result) = match self.begun {
            Begun::Layer(layer) => (Some(layer), None),
            Begun::Ended(id) => (None, Some(id)),
        };
        let mut is_new = false;
        let mut seen = BTreeSet::new();
        while let Some(layer) = next {
            is_new |= layer.step == LayerStep::Waiting;
            // An image may have a layer twice.
            if seen.insert((layer.blob.to_string(), format!("{:?}", layer.step))) {
                for line in layer_lines(&layer) {
                    let _ = lines.send(line).await;
                }
            }
            next = self.layers.recv().await;
        }
        let id = match result {
            Some(id) => id,
            None => joined((&mut self.ended).await, reference)?,
        };
        let is_new = is_new || self.before.as_ref() != Some(&id);
        if let Some(digest) = digest(&self.engine, reference, &id) {
            let _ = lines.send(json!({ "status": format!("Digest: {digest}") })).await;
        }
        Ok(Pulled { id, is_new })
    }
}

impl Pulled {
    /// The last line, and the event.
    pub(crate) async fn end(
        &self,
        engine: &Engine,
        shown: &str,
        repository: &str,
        lines: &mpsc::Sender<Value>,
    ) {
        if let Ok(Some(image)) = engine.node.host.images.find(self.id.as_str()) {
            let name = image_name::familiar(repository);
            engine.publish_image_as(&image, "pull", shown, name);
        }
        let status = match self.is_new {
            true => format!("Status: Downloaded newer image for {shown}"),
            false => format!("Status: Image is up to date for {shown}"),
        };
        let _ = lines.send(json!({ "status": status })).await;
    }
}

fn joined(
    result: Result<Result<Digest, Error>, JoinError>,
    reference: &Reference,
) -> Result<Digest> {
    match result {
        Ok(pulled) => pulled.map_err(|error| refused(error, reference)),
        Err(error) => Err(anyhow::Error::new(error).context("pull an image").into()),
    }
}

/// A registry that wants credentials is an internal error, as with dockerd: 401 would be the
/// engine's own refusal, at which some CLIs ask for a password, and wait for ever without a terminal.
fn refused(error: Error, reference: &Reference) -> Failure {
    match error.kind {
        Kind::Unauthenticated => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.message),
        Kind::NotFound => Failure::not_found(format!(
            "manifest for {} not found: {}",
            reference.shown(),
            words_of_registry(&error)
        )),
        _ => error.into(),
    }
}

/// What the registry itself has said, if it has: its error is `URL: 404 Not Found: WORDS`.
pub(crate) fn words_of_registry(error: &Error) -> &str {
    let words = error.message.rsplit_once("404 Not Found: ");
    words.map_or(error.message.as_str(), |(_, words)| words)
}

/// The digest that the registry has for an image.
fn digest(engine: &Engine, reference: &Reference, id: &Digest) -> Option<String> {
    if reference.target.contains(':') {
        return Some(reference.target.clone());
    }
    let images = &engine.node.host.images;
    let image = images.find(id.as_str()).ok().flatten()?;
    let prefix = format!("{}@", reference.repository);
    let names = images.names(&image).digests;
    names.iter().find_map(|name| name.strip_prefix(&prefix)).map(str::to_owned)
}

fn layer_lines(layer: &LayerProgress) -> Vec<Value> {
    let line = |status, done| progress::line(&layer.blob, status, done);
    match layer.step {
        LayerStep::Present => vec![line("Already exists", None)],
        LayerStep::Waiting => vec![line("Pulling fs layer", None)],
        LayerStep::Downloading { received, size } => {
            vec![line("Downloading", Some((received, size)))]
        }
        // It is verified while it comes, so that the one is not before the other.
        LayerStep::Downloaded => {
            vec![line("Verifying Checksum", None), line("Download complete", None)]
        }
        LayerStep::Complete => vec![line("Pull complete", None)],
    }
}
