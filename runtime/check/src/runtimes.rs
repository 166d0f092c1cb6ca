//! Other runtimes on this machine, and which one its kubelet uses.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use berth_base::config::Config;

use crate::finding::Finding;

const KNOWN: [(&str, &str); 4] = [
    ("containerd", "/run/containerd/containerd.sock"),
    ("CRI-O", "/run/crio/crio.sock"),
    ("cri-dockerd", "/run/cri-dockerd.sock"),
    ("dockerd", "/run/docker.sock"),
];
/// Where kubeadm puts what its kubelet is to use.
const KUBELET: [&str; 3] = [
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/kubeadm-flags.env",
    "/var/lib/kubelet/instance-config.yaml",
];

pub(crate) struct Facts {
    /// berth's own socket, and whether a daemon serves it.
    own: (PathBuf, bool),
    /// Those whose sockets take clients.
    others: Vec<(&'static str, &'static str)>,
    /// The socket of the Docker Engine API that berthd is to serve.
    engine: Option<PathBuf>,
    /// The kubelet's endpoint, if it says one.
    endpoint: Option<String>,
}

pub(crate) fn look(config: &Config) -> Facts {
    let serves = |path: &Path| UnixStream::connect(path).is_ok();
    let texts = KUBELET.iter().filter_map(|path| fs::read_to_string(path).ok());
    let own = serves(&config.listen);
    // Where berthd serves docker's socket itself, it is no other runtime.
    let is_own =
        |path: &str| own && config.engine.listen.as_deref().is_some_and(|own| same(own, path));
    let others = KNOWN.into_iter().filter(|(_, path)| serves(Path::new(path)) && !is_own(path));
    Facts {
        own: (config.listen.clone(), own),
        others: others.collect(),
        engine: config.engine.listen.clone(),
        endpoint: texts.filter_map(|text| endpoint(&text)).next(),
    }
}

/// /var/run is /run.
fn same(one: &Path, other: &str) -> bool {
    let one = one.to_string_lossy();
    one.strip_prefix("/var").unwrap_or(&one) == other
}

/// `containerRuntimeEndpoint: VALUE` of the kubelet's configuration, or its option.
fn endpoint(text: &str) -> Option<String> {
    let words = text.split(|c: char| c.is_whitespace() || c == '"' || c == '\'');
    let mut words = words.filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        if word == "containerRuntimeEndpoint:" || word == "--container-runtime-endpoint" {
            return words.next().map(str::to_owned);
        }
        if let Some(value) = word.strip_prefix("--container-runtime-endpoint=") {
            return Some(value.to_owned());
        }
    }
    None
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let own = facts.own.0.display();
    let mut findings = vec![Finding::ok(
        "berthd",
        format!("{} at {own}", if facts.own.1 { "serves" } else { "does not serve yet" }),
    )];
    for (name, path) in &facts.others {
        let is_engine = facts.engine.as_deref().is_some_and(|engine| same(engine, path));
        findings.push(match is_engine {
            true => Finding::warning(
                "other runtimes",
                format!("{name} serves {path}, which [engine] listen takes from it"),
                "systemctl disable --now docker.socket docker.service",
            ),
            false => Finding::warning(
                "other runtimes",
                format!("{name} serves {path}, and tools look there first"),
                format!(
                    "crictl config --set runtime-endpoint=unix://{own}; kubeadm --cri-socket unix://{own}"
                ),
            ),
        });
    }
    match &facts.endpoint {
        None => {}
        Some(endpoint) if endpoint.trim_start_matches("unix://") == own.to_string() => {
            findings.push(Finding::ok("kubelet", format!("uses {endpoint}")));
        }
        Some(endpoint) => findings.push(Finding::warning(
            "kubelet",
            format!("uses {endpoint}"),
            format!("once it is drained: containerRuntimeEndpoint: unix://{own}, and restart it"),
        )),
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{self, Ok, Warning};

    #[test]
    fn the_endpoint_of_a_kubelet_is_read_in_each_form() {
        for (text, expected) in [
            ("a: b\ncontainerRuntimeEndpoint: unix:///run/x.sock\n", Some("unix:///run/x.sock")),
            ("containerRuntimeEndpoint: \"\"\n", None),
            ("KUBELET_KUBEADM_ARGS=\"--a=b --container-runtime-endpoint=/x\"", Some("/x")),
            ("--container-runtime-endpoint /x", Some("/x")),
            ("", None),
        ] {
            assert_eq!(endpoint(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn who_else_runs_and_who_is_used_is_told() {
        let facts = |others: &[(&'static str, &'static str)], engine: &str, endpoint: &str| Facts {
            own: ("/run/berth/berth.sock".into(), false),
            others: others.to_vec(),
            engine: (!engine.is_empty()).then(|| engine.into()),
            endpoint: (!endpoint.is_empty()).then(|| endpoint.to_owned()),
        };
        let docker = KNOWN[3];
        for (facts, expected, told) in [
            (facts(&[], "", ""), &[Ok][..], "does not serve yet"),
            (facts(&[KNOWN[0]], "", ""), &[Ok, Warning], "tools look there first"),
            (facts(&[docker], "/var/run/docker.sock", ""), &[Ok, Warning], "takes from it"),
            (facts(&[], "", "unix:///run/berth/berth.sock"), &[Ok, Ok], "uses unix"),
            (facts(&[], "", "unix:///run/crio/crio.sock"), &[Ok, Warning], "uses unix"),
        ] {
            let found = judge(&facts);
            let verdicts: Vec<Verdict> = found.iter().map(|finding| finding.verdict).collect();
            assert_eq!(verdicts, expected);
            assert!(found.last().unwrap().found.contains(told), "{found:?}");
        }
    }
}
