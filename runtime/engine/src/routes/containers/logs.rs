//! `GET /containers/{name}/logs`.

use std::{collections::BTreeMap, io, sync::Arc};

use http::StatusCode;

use super::Call;
use crate::{
    container::{object::Container, record::Record, state::State},
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        upgrade::Framing,
    },
    streams::logs::{Follow, LogOptions, LogStream},
    time::parse_unix,
};

pub(in crate::routes) async fn logs(call: Call, name: &str) -> Result<Answer> {
    let query = &call.query;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        let why = "Bad parameters: you must choose at least one stream";
        return Err(Failure::bad_request(why));
    }
    let time = |name| match query.get(name) {
        "" => Ok(None),
        text => parse_unix(text).map(Some).map_err(|_| {
            let why = format!("strconv.ParseInt: parsing \"{text}\": invalid syntax");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why)
        }),
    };
    let (since, until) = (time("since")?, time("until")?.filter(|until| *until != 0));
    let container = call.engine.containers.find(name)?;
    let record = container.record();
    if record.host_config.log_config.r#type == "none" {
        let why = "configured logging driver does not support reading";
        return Err(Failure::new(StatusCode::NOT_IMPLEMENTED, why));
    }
    let options = LogOptions {
        stdout,
        stderr,
        since,
        until,
        // What is no number means all, and so does a negative one.
        tail: query.get("tail").parse().ok(),
        timestamps: query.flag("timestamps"),
        details: query.flag("details").then(|| details(&record)),
        tty: record.config.tty,
    };
    let follow = match query.flag("follow") && container.state().is_running() {
        true => Some(follow(&call, &container)?),
        false => None,
    };
    let stream = open(&container, options, follow)
        .await
        .map_err(|error| anyhow::Error::new(error).context("read the container's log"))?;
    let content_type = Framing::of(record.config.tty).content_type(call.version);
    Ok(body::streaming(content_type, stream.into_stream()))
}

/// Opens the log of a container.
///
/// # Errors
/// Those of the filesystem.
pub(super) async fn open(
    container: &Container,
    options: LogOptions,
    follow: Option<Follow>,
) -> io::Result<LogStream> {
    LogStream::open(container.directory.log(), options, follow).await
}

/// Goes on until the run ends: who wants the output of the next one, as compose, asks again.
fn follow(call: &Call, container: &Arc<Container>) -> Result<Follow> {
    let watch = call
        .engine
        .logs
        .watch(container.directory.path())
        .map_err(|error| anyhow::Error::new(error).context("watch the container's log"))?;
    let mut state = container.watch();
    let begun = state.borrow().last.started_at;
    let ended = Box::pin(async move {
        // The next run may have begun before this is looked at.
        let is_over = |state: &State| !state.is_running() || state.last.started_at != begun;
        let _ = state.wait_for(is_over).await;
    });
    Ok(Follow { watch, ended })
}

/// What `docker logs --details` shows: the labels and variables that the options of the log name.
fn details(record: &Record) -> BTreeMap<String, String> {
    let options = &record.host_config.log_config.config;
    let names = |option: &str| {
        let text = options.get(option).map_or("", String::as_str);
        text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut details = BTreeMap::new();
    for label in names("labels") {
        if let Some(value) = record.config.labels.iter().flatten().find(|(key, _)| **key == label) {
            details.insert(label, value.1.clone());
        }
    }
    for name in names("env") {
        let entry = record.config.env.iter().flatten().filter_map(|entry| entry.split_once('='));
        if let Some((_, value)) = entry.into_iter().find(|(key, _)| *key == name) {
            details.insert(name, value.to_owned());
        }
    }
    if let Some(tag) = options.get("tag") {
        details.insert("tag".to_owned(), tag_of(tag, record));
    }
    details
}

/// The tag of a log, which is a template of Go. Of these the ones that are in use are known.
fn tag_of(template: &str, record: &Record) -> String {
    template
        .replace("{{.Name}}", &record.name)
        .replace("{{.ID}}", &record.id[..12])
        .replace("{{.FullID}}", &record.id)
        .replace("{{.ImageName}}", &record.config.image)
        .replace("{{.DaemonName}}", "docker")
}
