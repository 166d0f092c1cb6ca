//! What a request leaves to its image.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::api::{create::ContainerConfig, json};

/// The part of an image's config document that containers inherit. The OCI specification does not
/// know all of it, such as the health check.
pub(crate) fn of_image(document: &[u8]) -> ContainerConfig {
    let document: Map<String, Value> = serde_json::from_slice(document).unwrap_or_default();
    match document.get("config") {
        // A field of the wrong type is as good as none: the image is what it is.
        Some(Value::Object(config)) => {
            json::fields(&mut config.clone(), "config").unwrap_or_default()
        }
        _ => ContainerConfig::default(),
    }
}

/// Fills in what `config` does not say.
pub(crate) fn merge(config: &mut ContainerConfig, image: ContainerConfig) {
    let is_empty = |list: &Option<Vec<String>>| list.as_ref().is_none_or(Vec::is_empty);
    if is_empty(&config.entrypoint) {
        // The image's command belongs to its own entry point.
        if is_empty(&config.cmd) {
            config.cmd = image.cmd;
            config.args_escaped = image.args_escaped;
        }
        if config.entrypoint.is_none() {
            config.entrypoint = image.entrypoint;
        }
    }
    // `--entrypoint ""` drops that of the image.
    if config
        .entrypoint
        .as_ref()
        .is_some_and(|words| matches!(words.as_slice(), [one] if one.is_empty()))
    {
        config.entrypoint = None;
    }
    let or = |own: &mut String, inherited: String| {
        if own.is_empty() {
            *own = inherited;
        }
    };
    or(&mut config.user, image.user);
    or(&mut config.working_dir, image.working_dir);
    config.stop_signal = config.stop_signal.take().filter(|s| !s.is_empty()).or(image.stop_signal);
    config.healthcheck = match (config.healthcheck.take(), image.healthcheck) {
        (Some(own), Some(inherited)) => Some(own.or(&inherited)),
        (own, inherited) => own.or(inherited),
    };
    config.env = env(config.env.take(), image.env);
    union(&mut config.exposed_ports, image.exposed_ports);
    union(&mut config.volumes, image.volumes);
    // An answer has labels even if there are none.
    let mut labels = image.labels.unwrap_or_default();
    labels.extend(config.labels.take().unwrap_or_default());
    config.labels = Some(labels);
    // `SHELL` is what health checks run in.
    config.shell = config.shell.take().or(image.shell);
}

/// The request's variables, and behind them those of the image that it does not set. One without
/// `=` unsets that of the image.
fn env(own: Option<Vec<String>>, image: Option<Vec<String>>) -> Option<Vec<String>> {
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env = own.filter(|own| !own.is_empty());
    for entry in image.into_iter().flatten() {
        let env = env.get_or_insert_default();
        if !env.iter().any(|own| key(own) == key(&entry)) {
            env.push(entry);
        }
    }
    env
}

fn union(own: &mut Option<BTreeMap<String, Value>>, image: Option<BTreeMap<String, Value>>) {
    for (key, value) in image.into_iter().flatten() {
        own.get_or_insert_default().entry(key).or_insert(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGE: &[u8] = br#"{"config":{"Entrypoint":["/e"],"Cmd":["c"],"Env":["A=1","B=2"],
        "Labels":{"l":"image","m":"image"},"ExposedPorts":{"80/tcp":{}},"Volumes":null,
        "Healthcheck":{"Test":["CMD","t"],"Interval":5000000}}}"#;

    fn merged(body: &str) -> ContainerConfig {
        let mut config: ContainerConfig = serde_json::from_str(body).unwrap();
        merge(&mut config, of_image(IMAGE));
        config
    }

    #[test]
    fn what_is_not_said_is_the_images() {
        let words = |list: &[&str]| Some(list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        for (body, entrypoint, cmd) in [
            ("{}", words(&["/e"]), words(&["c"])),
            (r#"{"Cmd":["x"]}"#, words(&["/e"]), words(&["x"])),
            (r#"{"Entrypoint":["/x"]}"#, words(&["/x"]), None),
            (r#"{"Entrypoint":[""],"Cmd":["x"]}"#, None, words(&["x"])),
        ] {
            let config = merged(body);
            assert_eq!((config.entrypoint, config.cmd), (entrypoint, cmd), "{body}");
        }
        let config = merged(
            r#"{"Env":["B=3","C"],"Labels":{"l":"own"},"ExposedPorts":{"1/udp":{}},
            "Healthcheck":{"Interval":7000000}}"#,
        );
        assert_eq!(config.env.unwrap(), ["B=3", "C", "A=1"]);
        assert_eq!(config.labels.unwrap()["l"], "own");
        assert_eq!(config.exposed_ports.unwrap().len(), 2);
        let health = config.healthcheck.unwrap();
        assert_eq!((health.interval, health.test.unwrap().len()), (7_000_000, 2));
        assert_eq!(config.volumes, None);
    }
}
