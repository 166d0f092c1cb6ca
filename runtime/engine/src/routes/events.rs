//! `GET /events`.

use std::{collections::BTreeMap, time::Duration};

use berth_base::clock::now;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Call;
use crate::{
    filters::Filters,
    http::{
        body::{self, Answer},
        error::{Failure, Result},
        version::Version,
    },
    time::parse_unix,
};

pub(super) fn events(call: &Call) -> Result<Answer> {
    let query = &call.query;
    let (since, until) = (time(query.get("since"))?, time(query.get("until"))?);
    if let (since, Some(until)) = (since.unwrap_or(0), until)
        && until < since
    {
        let (since, until) = (query.get("since"), query.get("until"));
        return Err(Failure::bad_request(format!(
            "`since` time ({since}) cannot be after `until` time ({until})"
        )));
    }
    let filters = Filters::parse(query.get("filters"))?;
    let version = call.version;
    let (kept, receiver) = call.engine.events.listen();
    // Without a time nobody asks for what has been.
    let kept = if since.is_none() && until.is_none() { Vec::new() } else { kept };
    let past = kept.into_iter().filter(move |event| {
        let at = event["timeNano"].as_i64().unwrap_or(0);
        at >= since.unwrap_or(0) && until.is_none_or(|until| at <= until)
    });
    let left = until.map(|until| until.saturating_sub(now()));
    let coming = match left {
        Some(..=0) => stream::empty().boxed(),
        left => coming(receiver, left).boxed(),
    };
    let chosen = stream::iter(past).chain(coming).filter_map(move |event| {
        let line = (includes(&filters, &event) && is_known_to(version, &event))
            .then(|| Ok(Bytes::from(format!("{event}\n"))));
        std::future::ready(line)
    });
    Ok(body::streaming("application/json", chosen))
}

/// A time of a query, in dockerd's words if it is none.
fn time(text: &str) -> Result<Option<i64>> {
    match text {
        "" => Ok(None),
        text => parse_unix(text).map(Some).map_err(|_| {
            let why = format!("strconv.ParseInt: parsing \"{text}\": invalid syntax");
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why)
        }),
    }
}

/// The events from now on, for `left` nanoseconds or for ever. A listener that is too far behind
/// misses some, as with dockerd.
fn coming(
    receiver: Receiver<Value>,
    left: Option<i64>,
) -> impl futures_util::Stream<Item = Value> + Send {
    let nanos = left.map(|left| u64::try_from(left).unwrap_or(0));
    let end = nanos.map(|nanos| tokio::time::Instant::now() + Duration::from_nanos(nanos));
    stream::unfold(receiver, move |mut receiver| async move {
        loop {
            let next = match end {
                Some(end) => tokio::time::timeout_at(end, receiver.recv()).await.ok()?,
                None => receiver.recv().await,
            };
            match next {
                Ok(event) => return Some((event, receiver)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

/// 1.46 was the first to have the creation of images.
fn is_known_to(version: Version, event: &Value) -> bool {
    version >= Version(46) || event["Type"] != "image" || event["Action"] != "create"
}

/// Whether the filters let an event through. Those that name an object match any event with such an
/// id or name, whatever its type, as dockerd's do.
fn includes(filters: &Filters, event: &Value) -> bool {
    const OBJECTS: [&str; 9] = [
        "daemon",
        "container",
        "plugin",
        "volume",
        "network",
        "node",
        "service",
        "secret",
        "config",
    ];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, action, id) =
        (text(&event["Type"]), text(&event["Action"]), text(&event["Actor"]["ID"]));
    let attributes: BTreeMap<String, String> = event["Actor"]["Attributes"]
        .as_object()
        .map(|map| map.iter().map(|(key, value)| (key.clone(), text(value))).collect())
        .unwrap_or_default();
    let attribute = |name: &str| attributes.get(name).map_or("", String::as_str);
    let has_command = ["health_status", "exec_create", "exec_start"];
    let is_fuzzy = filters.values("event").any(|value| has_command.contains(&value));
    let matches_event = match is_fuzzy {
        true => filters.matches_prefix("event", &action),
        false => filters.matches_exactly("event", &action),
    };
    matches_event
        && filters.matches_exactly("type", &kind)
        && filters.matches_exactly("scope", "local")
        && OBJECTS.iter().all(|object| {
            filters.matches_prefix(object, &id) || filters.matches_prefix(object, attribute("name"))
        })
        && matches_image(filters, &id, attribute(if kind == "image" { "name" } else { "image" }))
        && filters.matches_labels("label", &attributes)
}

fn matches_image(filters: &Filters, id: &str, name: &str) -> bool {
    [id, name, without_tag(id), without_tag(name)]
        .iter()
        .any(|name| filters.matches_exactly("image", name))
}

fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, action: &str, id: &str, attributes: Value) -> Value {
        json!({ "Type": kind, "Action": action, "Actor": { "ID": id, "Attributes": attributes } })
    }

    #[test]
    fn filters_choose_as_dockerd_does() {
        let exec = event(
            "container",
            "exec_start: sh -c true",
            "abcdef",
            json!({ "name": "web", "image": "docker.io/busybox:1", "lab": "v" }),
        );
        for (filters, expected) in [
            ("", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["image"]}"#, false),
            (r#"{"event":["exec_start"]}"#, true),
            (r#"{"event":["exec"]}"#, false),
            (r#"{"event":["die","exec_start: sh -c true"]}"#, true),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["abc"]}"#, true),
            (r#"{"container":["bcd"]}"#, false),
            (r#"{"image":["docker.io/busybox"]}"#, true),
            (r#"{"image":["busybox"]}"#, false),
            (r#"{"label":["lab=v"]}"#, true),
            (r#"{"label":["lab=w"]}"#, false),
            (r#"{"scope":["swarm"]}"#, false),
            (r#"{"daemon":["x"]}"#, false),
        ] {
            assert_eq!(includes(&Filters::parse(filters).unwrap(), &exec), expected, "{filters}");
        }
        let image = event("image", "create", "sha256:1", json!({ "name": "a:1" }));
        assert!(!is_known_to(Version(45), &image) && is_known_to(Version(46), &image));
    }
}
