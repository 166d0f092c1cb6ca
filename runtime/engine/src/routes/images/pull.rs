//! `POST /images/create`: a pull, with a line of JSON for each step of a layer.

use std::{collections::BTreeSet, sync::Arc};

use berth_base::error::{Error, Kind};
use berth_image::{AuthConfig, Digest, LayerProgress, LayerStep, normalize, watch};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
};

use crate::{
    api::registry::auth,
    container::platform::Platform,
    engine::Engine,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
    },
    image_name, progress,
    routes::Call,
};

/// How many lines wait for a client.
const WAITING: usize = 64;

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    One(Reference),
    /// All tags of a repository.
    All(String),
}

/// Pulls an image, or all tags of a repository. The pull goes on if the client goes away.
///
/// # Errors
/// 400 for what is no name; what the registry says, if no layer was reported before.
pub(in crate::routes) async fn pull(call: Call) -> Result<Answer> {
    if let Some(platform) = Platform::parse(call.query.get("platform"))?
        && !platform.is_own()
    {
        let text = format!("only images for this machine can be pulled, and none for {platform}");
        return Err(Failure::bad_request(text));
    }
    let wanted = Wanted::parse(call.query.get("fromImage"), call.query.get("tag"))?;
    let auth = auth(call.request.headers());
    let (lines, receiver) = mpsc::channel(WAITING);
    match wanted {
        Wanted::One(reference) => {
            // A pull that fails before it has begun has its status; later, the answer is on its way.
            let pull = Pull::begin(call.engine, reference, auth).await?;
            tokio::spawn(one(pull, lines));
        }
        Wanted::All(repository) => {
            let tags = call.engine.node.host.images.tags(&repository, auth.clone()).await;
            let tags = tags.map_err(|error| unknown_repository(&repository, error))?;
            tokio::spawn(all(call.engine, repository, tags, auth, lines));
        }
    }
    Ok(body::lines(receiver))
}

/// Tells one pull to its end.
async fn one(pull: Pull, lines: mpsc::Sender<Value>) {
    let (engine, shown) = (pull.engine.clone(), pull.reference.shown());
    let repository = pull.reference.repository.clone();
    match pull.tell(&lines).await {
        Ok(pulled) => pulled.end(&engine, &shown, &repository, &lines).await,
        Err(failure) => drop(lines.send(progress::failed(&failure.message)).await),
    }
}

/// Pulls one tag after the other.
async fn all(
    engine: Arc<Engine>,
    repository: String,
    tags: Vec<String>,
    auth: AuthConfig,
    lines: mpsc::Sender<Value>,
) {
    let mut last: Option<Pulled> = None;
    for target in tags {
        let reference = Reference { repository: repository.clone(), target };
        let pulled = match Pull::begin(engine.clone(), reference, auth.clone()).await {
            Ok(pull) => pull.tell(&lines).await,
            Err(failure) => Err(failure),
        };
        match pulled {
            Ok(pulled) => {
                let is_new = pulled.is_new || last.is_some_and(|last| last.is_new);
                last = Some(Pulled { is_new, ..pulled });
            }
            Err(failure) => {
                return drop(lines.send(progress::failed(&failure.message)).await);
            }
        }
    }
    if let Some(pulled) = last {
        let shown = image_name::familiar(&repository);
        pulled.end(&engine, shown, &repository, &lines).await;
    }
}

/// A full name, `docker.io/library/busybox:latest`, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Reference {
    /// `docker.io/library/busybox`
    repository: String,
    /// A tag or a digest.
    target: String,
}

impl Reference {
    fn parse(full: &str) -> Self {
        let (repository, target) = match full.split_once('@') {
            Some((repository, digest)) => (repository, digest),
            None => full.rsplit_once(':').unwrap_or((full, "latest")),
        };
        Self { repository: repository.to_owned(), target: target.to_owned() }
    }

    fn joined(&self) -> String {
        let mark = if self.target.contains(':') { '@' } else { ':' };
        format!("{}{mark}{}", self.repository, self.target)
    }

    /// As events and the last line name it.
    fn shown(&self) -> String {
        image_name::familiar(&self.joined()).to_owned()
    }

    /// What a pull is known by in its lines: the tag, or the whole name where it has a digest.
    fn line_id(&self) -> String {
        match self.target.contains(':') {
            true => self.shown(),
            false => self.target.clone(),
        }
    }

    /// Without the host.
    fn path(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(_, path)| path)
    }
}

/// A pull that runs, and the reports of its layers.
struct Pull {
    engine: Arc<Engine>,
    reference: Reference,
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
struct Pulled {
    id: Digest,
    is_new: bool,
}

impl Pull {
    /// Begins a pull, and waits until there is something to be told of it.
    ///
    /// # Errors
    /// What the registry says.
    async fn begin(engine: Arc<Engine>, reference: Reference, auth: AuthConfig) -> Result<Self> {
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
    async fn tell(mut self, lines: &mpsc::Sender<Value>) -> Result<Pulled> {
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
    async fn end(
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

fn unknown_repository(repository: &str, error: Error) -> Failure {
    match error.kind {
        Kind::Unauthenticated => Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.message),
        Kind::NotFound => Failure::not_found(format!(
            "repository {} not found: {}",
            image_name::familiar(repository),
            words_of_registry(&error)
        )),
        _ => error.into(),
    }
}

/// What the registry itself has said, if it has: its error is `URL: 404 Not Found: WORDS`.
fn words_of_registry(error: &Error) -> &str {
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

impl Wanted {
    fn parse(name: &str, tag: &str) -> Result<Self> {
        let text = match tag {
            "" => name.to_owned(),
            digest if digest.contains(':') => format!("{name}@{digest}"),
            tag => format!("{name}:{tag}"),
        };
        let full = normalize(&text).ok_or_else(|| match normalize(name) {
            Some(_) => Failure::bad_request("invalid tag format"),
            None => image_name::invalid(name),
        })?;
        let reference = Reference::parse(&full);
        let last = text.rsplit('/').next().unwrap_or_default();
        Ok(match last.contains([':', '@']) {
            true => Self::One(reference),
            false => Self::All(reference.repository),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_or_all_of_a_repository_are_asked_for() {
        for (name, tag, repository, target, path) in [
            ("busybox", "latest", "docker.io/library/busybox", "latest", "library/busybox"),
            ("localhost:5000/a/b", "1", "localhost:5000/a/b", "1", "a/b"),
            ("docker.io/x/y:2", "", "docker.io/x/y", "2", "x/y"),
        ] {
            let Ok(Wanted::One(reference)) = Wanted::parse(name, tag) else { panic!("{name}") };
            assert_eq!((&*reference.repository, &*reference.target), (repository, target));
            assert_eq!((reference.path(), reference.line_id()), (path, target.to_owned()));
        }
        let all = Wanted::parse("localhost:5000/a/b", "").unwrap();
        assert_eq!(all, Wanted::All("localhost:5000/a/b".to_owned()));
        let digest = format!("sha256:{}", "0".repeat(64));
        let Ok(Wanted::One(by_digest)) = Wanted::parse("busybox", &digest) else { panic!() };
        assert_eq!(by_digest.joined(), format!("docker.io/library/busybox@{digest}"));
        assert_eq!(by_digest.line_id(), format!("busybox@{digest}"));
        let refused = |name: &str| Wanted::parse(name, "").unwrap_err().message;
        assert!(refused("UPPER").ends_with("must be lowercase"));
        assert_eq!(refused(""), "invalid reference format");
    }
}
