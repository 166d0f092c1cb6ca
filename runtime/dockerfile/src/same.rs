//! When an image in the cache is what an instruction would make.

use std::collections::BTreeMap;

use crate::config::Config;

/// Whether two configs are the same to dockerd's cache. It leaves out what belongs to a container
/// alone: the image, the host name, the MAC address. `cached` is the image's `container_config`,
/// `probe` that of the instruction.
pub fn is_same(cached: &Config, probe: &Config) -> bool {
    fn words(list: &Option<Vec<String>>) -> &[String] {
        list.as_deref().unwrap_or_default()
    }
    fn map<V>(map: &Option<BTreeMap<String, V>>) -> Vec<(&String, &V)> {
        map.iter().flatten().collect()
    }
    fn keys<V>(map: &Option<BTreeMap<String, V>>) -> Vec<&String> {
        map.iter().flat_map(BTreeMap::keys).collect()
    }
    let flags = |config: &Config| {
        [
            config.attach_stdin,
            config.attach_stdout,
            config.attach_stderr,
            config.network_disabled,
            config.tty,
            config.open_stdin,
            config.stdin_once,
            config.args_escaped.unwrap_or_default(),
        ]
    };
    let health = |config: &Config| {
        let mut health = config.healthcheck.clone()?;
        health.test = health.test.filter(|test| !test.is_empty());
        Some(health)
    };
    let signal = |config: &Config| config.stop_signal.clone().unwrap_or_default();
    [(&cached.env, &probe.env), (&cached.cmd, &probe.cmd), (&cached.shell, &probe.shell)]
        .iter()
        .chain(&[(&cached.entrypoint, &probe.entrypoint), (&cached.on_build, &probe.on_build)])
        .all(|(a, b)| words(a) == words(b))
        && keys(&cached.exposed_ports) == keys(&probe.exposed_ports)
        && keys(&cached.volumes) == keys(&probe.volumes)
        && map(&cached.labels) == map(&probe.labels)
        && flags(cached) == flags(probe)
        && cached.user == probe.user
        && cached.working_dir == probe.working_dir
        && signal(cached) == signal(probe)
        && cached.stop_timeout == probe.stop_timeout
        && health(cached) == health(probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> Config {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn only_what_an_instruction_can_change_counts() {
        for (a, b, expected) in [
            ("{}", "{}", true),
            (r#"{"Image":"a","Hostname":"h","Domainname":"d"}"#, "{}", true),
            (r#"{"Env":[],"Cmd":[],"Labels":{},"Volumes":{}}"#, "{}", true),
            (r#"{"Env":["a","b"]}"#, r#"{"Env":["b","a"]}"#, false),
            (r#"{"Cmd":["a b"]}"#, r#"{"Cmd":["a","b"]}"#, false),
            (r#"{"Labels":{"a":"1"}}"#, r#"{"Labels":{"a":"2"}}"#, false),
            (r#"{"ExposedPorts":{"1/tcp":{}}}"#, r#"{"ExposedPorts":{"2/tcp":{}}}"#, false),
            (r#"{"Volumes":{"/a":{}}}"#, r#"{"Volumes":{"/a":{"x":1}}}"#, true),
            (r#"{"Tty":true}"#, "{}", false),
            (r#"{"ArgsEscaped":false}"#, "{}", true),
            (r#"{"StopSignal":""}"#, "{}", true),
            (r#"{"StopTimeout":1}"#, "{}", false),
            (r#"{"Healthcheck":{}}"#, "{}", false),
            (r#"{"Healthcheck":{"Test":[]}}"#, r#"{"Healthcheck":{}}"#, true),
            (r#"{"Healthcheck":{"Retries":1}}"#, r#"{"Healthcheck":{}}"#, false),
        ] {
            assert_eq!(is_same(&config(a), &config(b)), expected, "{a} {b}");
            assert_eq!(is_same(&config(b), &config(a)), expected, "{b} {a}");
        }
    }
}
