//! What dockerd's daemon.json says, in berth's words: the files of registries, the keys of berth's
//! configuration, and what has no counterpart.

use std::{fmt::Write, net::IpAddr};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

/// What comes of a daemon.json.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// A hosts.toml for each registry, by its host.
    pub registries: Vec<(String, String)>,
    /// Lines of berth's configuration, with the table they belong to: "" for the top.
    pub config: Vec<(&'static str, String)>,
    /// What is to be said of each key, in the order of their names.
    pub remarks: Vec<(String, String)>,
}

const HUB: &str = "docker.io";

/// # Errors
/// The text is no JSON object, or a key has a value that dockerd would refuse.
pub(super) fn plan(text: &str) -> anyhow::Result<Plan> {
    // dockerd takes an empty file for one without keys.
    let text = if text.trim().is_empty() { "{}" } else { text };
    let keys: Map<String, Value> = serde_json::from_str(text)?;
    let mut plan = Plan::default();
    if !keys.contains_key("hosts") {
        plan.config.push(("engine", "listen = \"/run/docker.sock\"".to_owned()));
    }
    let insecure = insecure_registries(&keys)?;
    for (key, value) in &keys {
        let remark = match key.as_str() {
            "registry-mirrors" => mirrors(&mut plan, value, &insecure),
            "insecure-registries" => Ok(insecure_files(&mut plan, &insecure)),
            _ => Ok(one(&mut plan, key, value)),
        };
        plan.remarks.push((key.clone(), remark.with_context(|| key.clone())?));
    }
    Ok(plan)
}

fn strings(value: &Value) -> anyhow::Result<Vec<&str>> {
    let list = value.as_array().context("a list of strings is expected")?;
    list.iter().map(|one| one.as_str().context("a list of strings is expected")).collect()
}

/// The registries that need not prove who they are: hosts, with or without a port, and networks.
fn insecure_registries(keys: &Map<String, Value>) -> anyhow::Result<Vec<&str>> {
    let Some(value) = keys.get("insecure-registries") else { return Ok(Vec::new()) };
    let registries = strings(value).context("insecure-registries")?;
    for registry in &registries {
        let is_one = match registry.split_once('/') {
            Some((address, bits)) => {
                address.parse::<IpAddr>().is_ok() && bits.parse::<u8>().is_ok()
            }
            None => is_host(registry),
        };
        ensure!(is_one, "insecure-registries: {registry:?} is no host and no network");
    }
    Ok(registries)
}

/// Whether this is a host with or without a port. It becomes the name of a directory, and stands
/// between quotation marks.
fn is_host(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
    !text.is_empty() && !text.starts_with('.') && text.bytes().all(is_plain)
}

/// Docker Hub's mirrors, which may not be asked with a path (dockerd's `ValidateMirror`).
fn mirrors(plan: &mut Plan, value: &Value, insecure: &[&str]) -> anyhow::Result<String> {
    let urls = strings(value)?;
    if urls.is_empty() {
        return Ok("none are named".to_owned());
    }
    let mut text = "server = \"https://registry-1.docker.io\"\n".to_owned();
    for url in urls {
        let url = url.trim_end_matches('/');
        let host = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let Some(host) = host.filter(|host| is_host(host)) else {
            bail!("{url:?} is no mirror: http:// or https://, and a host without a path");
        };
        let _ = write!(text, "\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
        if url.starts_with("https:") && insecure.contains(&host) {
            text += "skip_verify = true\n";
        }
    }
    plan.registries.push((HUB.to_owned(), text));
    Ok("the mirrors of docker.io, asked in this order before it".to_owned())
}

fn insecure_files(plan: &mut Plan, registries: &[&str]) -> String {
    let (networks, hosts): (Vec<&str>, Vec<&str>) =
        registries.iter().copied().partition(|registry| registry.contains('/'));
    for host in hosts.iter().filter(|host| **host != HUB) {
        let text = format!(
            "server = \"http://{host}\"\n\n[host.\"https://{host}\"]\nskip_verify = true\n\
             capabilities = [\"pull\", \"resolve\", \"push\"]\n"
        );
        plan.registries.push(((*host).to_owned(), text));
    }
    let mut remark =
        "pulled from by https with any certificate, else by http; pushed to by https: \
                      where a registry has only http, remove that host of its file"
            .to_owned();
    // Those are so without being named.
    let others = networks.iter().filter(|network| !["127.0.0.0/8", "::1/128"].contains(network));
    let others: Vec<&str> = others.copied().collect();
    if !others.is_empty() {
        let _ = write!(
            remark,
            "; NOT TAKEN OVER: networks ({}): name each registry",
            others.join(", ")
        );
    }
    remark
}

/// What is said of one key besides those of registries.
fn one(plan: &mut Plan, key: &str, value: &Value) -> String {
    if let Some((table, line)) = counterpart(key, value) {
        let name = line.split(" = ").next().unwrap_or_default().to_owned();
        plan.config.push((table, line));
        return match table {
            "" => format!("`{name}`, below"),
            _ => format!("`{table}.{name}`, below"),
        };
    }
    match KNOWN.iter().find(|(known, _)| *known == key) {
        Some((_, remark)) => (*remark).to_owned(),
        None => {
            "NOT TAKEN OVER: dockerd has no such key, or berth nothing for this value".to_owned()
        }
    }
}

/// The line of berth's configuration that says the same, and its table.
fn counterpart(key: &str, value: &Value) -> Option<(&'static str, String)> {
    // JSON's escapes are TOML's.
    let line = |name: &str, value: &Value| format!("{name} = {value}");
    let of_list = |prefix: &str| {
        value.as_array()?.iter().filter_map(Value::as_str).find_map(|one| one.strip_prefix(prefix))
    };
    match (key, value) {
        // Next to what docker has there, which berth would not understand.
        ("data-root" | "graph", Value::String(path)) => {
            Some(("", line("root", &format!("{}/berth", path.trim_end_matches('/')).into())))
        }
        ("hosts", Value::Array(_)) => Some(("engine", line("listen", &of_list("unix://")?.into()))),
        ("group", Value::String(_)) => Some(("engine", line("group", value))),
        ("metrics-addr", Value::String(_)) => Some(("metrics", line("listen", value))),
        ("cdi-spec-dirs", Value::Array(_)) => Some(("cdi", line("spec_dirs", value))),
        ("exec-opts", Value::Array(_)) => {
            Some(("cgroup", line("driver", &of_list("native.cgroupdriver=")?.into())))
        }
        ("runtimes", Value::Object(runtimes)) => {
            let of = |(name, runtime): (&String, &Value)| {
                let path = runtime.get("path")?;
                Some(format!("{} = {{ oci_runtime = {path} }}", Value::from(name.as_str())))
            };
            let lines: Option<Vec<String>> = runtimes.iter().map(of).collect();
            Some(("handlers", lines.filter(|lines| !lines.is_empty())?.join("\n")))
        }
        _ => None,
    }
}

const ALWAYS: &str = "always so";
const BY_OPTION: &str = "NOT TAKEN OVER: there is no default to set; as an option of `docker run`";
const NETWORK: &str = "NOT TAKEN OVER: docker0 is 172.17.0.0/16, as dockerd's is by itself; `docker network create` has its own";
const NEVER: &str = "NOT TAKEN OVER: berth has no such thing";

/// Keys without a line in berth's configuration, and what is said of them.
const KNOWN: [(&str, &str); 50] = [
    ("allow-nondistributable-artifacts", NEVER),
    ("authorization-plugins", NEVER),
    ("bip", NETWORK),
    ("bip6", NETWORK),
    ("bridge", NETWORK),
    ("builder", "NOT TAKEN OVER: the cache of builds goes with its images"),
    ("cgroup-parent", BY_OPTION),
    ("containerd", "not needed: berth runs containers itself"),
    ("debug", "`berthd --log-level debug`"),
    (
        "default-address-pools",
        "NOT TAKEN OVER: networks get subnets of dockerd's own pools; `docker network create --subnet` sets one",
    ),
    ("default-gateway", NETWORK),
    ("default-runtime", BY_OPTION),
    ("default-shm-size", BY_OPTION),
    ("default-ulimits", BY_OPTION),
    ("dns", BY_OPTION),
    ("dns-opts", BY_OPTION),
    ("dns-search", BY_OPTION),
    ("experimental", NEVER),
    ("features", NEVER),
    ("fixed-cidr", NETWORK),
    ("fixed-cidr-v6", NETWORK),
    ("hosts", "NOT TAKEN OVER: only unix:// is served, and root and a group are let in"),
    ("icc", NETWORK),
    ("init", BY_OPTION),
    ("ip", BY_OPTION),
    ("ip-forward", ALWAYS),
    ("ip-masq", ALWAYS),
    ("ip6tables", "not needed: berth has tables of its own in nftables"),
    ("iptables", "not needed: berth has tables of its own in nftables"),
    ("ipv6", NETWORK),
    ("labels", NEVER),
    ("live-restore", ALWAYS),
    ("log-driver", BY_OPTION),
    ("log-format", "`berthd --log-format`"),
    ("log-level", "`berthd --log-level`"),
    ("log-opts", BY_OPTION),
    ("max-concurrent-downloads", "not needed: layers come in parallel"),
    ("max-concurrent-uploads", "not needed: layers go one after the other"),
    ("max-download-attempts", "not needed: a pull tries three times, see `registry.stall_seconds`"),
    ("mtu", NETWORK),
    ("no-new-privileges", BY_OPTION),
    ("oom-score-adjust", NEVER),
    ("pidfile", NEVER),
    ("proxies", "NOT TAKEN OVER: HTTPS_PROXY and the like, in berthd's environment"),
    ("seccomp-profile", BY_OPTION),
    ("selinux-enabled", "always so where the kernel has SELinux"),
    ("shutdown-timeout", "not needed: containers outlive the daemon"),
    ("storage-driver", "overlay2, always"),
    ("userland-proxy", "not needed: there is none"),
    ("userns-remap", "NOT TAKEN OVER: containers of docker have the users of the machine"),
];

/// The lines of berth's configuration, as one text.
pub(super) fn config_text(config: &[(&'static str, String)]) -> String {
    let mut lines: Vec<_> = config.iter().collect();
    lines.sort_by_key(|(table, _)| *table);
    let mut text = String::new();
    let mut open = "";
    for (table, line) in lines {
        if *table != open {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}[{table}]");
            open = table;
        }
        text += line;
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use berth_base::config::Config;

    use super::*;

    fn of(text: &str) -> Plan {
        plan(text).unwrap()
    }

    #[test]
    fn registries_become_files_of_certs_d() {
        let text = r#"{"registry-mirrors": ["https://m.example/", "http://127.0.0.1:5000"],
            "insecure-registries": ["m.example", "reg:5000", "127.0.0.0/8", "10.0.0.0/8"]}"#;
        let plan = of(text);
        let hosts: Vec<&str> = plan.registries.iter().map(|(host, _)| host.as_str()).collect();
        assert_eq!(hosts, ["m.example", "reg:5000", HUB]);
        assert_eq!(
            plan.registries[2].1,
            "server = \"https://registry-1.docker.io\"\n\n[host.\"https://m.example\"]\n\
             capabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n\n\
             [host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        assert!(
            plan.remarks[0]
                .1
                .ends_with("NOT TAKEN OVER: networks (10.0.0.0/8): name each registry")
        );
    }

    #[test]
    fn keys_become_keys_that_berth_takes() {
        let text = r#"{"data-root": "/data/docker/", "hosts": ["tcp://0.0.0.0:1", "unix:///run/d.sock"],
            "group": "docker", "exec-opts": ["native.cgroupdriver=systemd"],
            "runtimes": {"crun": {"path": "/usr/bin/crun"}}, "cdi-spec-dirs": ["/etc/cdi"],
            "metrics-addr": "127.0.0.1:9323"}"#;
        let config = config_text(&of(text).config);
        assert_eq!(
            config,
            "root = \"/data/docker/berth\"\n\n[cdi]\nspec_dirs = [\"/etc/cdi\"]\n\n[cgroup]\n\
             driver = \"systemd\"\n\n[engine]\ngroup = \"docker\"\nlisten = \"/run/d.sock\"\n\n\
             [handlers]\n\"crun\" = { oci_runtime = \"/usr/bin/crun\" }\n\n[metrics]\n\
             listen = \"127.0.0.1:9323\"\n"
        );
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        std::fs::write(&path, config).unwrap();
        Config::load(&path, true).unwrap();
        assert_eq!(of(" ").config, [("engine", "listen = \"/run/docker.sock\"".to_owned())]);
    }

    #[test]
    fn what_has_no_counterpart_says_so() {
        for (key, value) in [
            ("bip", r#""10.1.0.1/24""#),
            ("log-opts", r#"{"max-size": "10m"}"#),
            ("dns", r#"["9.9.9.9"]"#),
            ("hosts", r#"["tcp://0.0.0.0:2375"]"#),
            ("registry-mirror", "[]"),
            ("runtimes", r#"{"kata": {"runtimeType": "io.containerd.kata.v2"}}"#),
        ] {
            let plan = of(&format!("{{\"{key}\": {value}}}"));
            assert!(plan.remarks[0].1.starts_with("NOT TAKEN OVER: "), "{key}: {plan:?}");
        }
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn what_dockerd_would_refuse_is_refused() {
        for (text, why) in [
            ("[]", "expected a map"),
            ("{\"debug\": tru", "line 1"),
            (r#"{"registry-mirrors": "https://m"}"#, "registry-mirrors: a list of strings"),
            (r#"{"registry-mirrors": ["ftp://m"]}"#, "is no mirror"),
            (r#"{"registry-mirrors": ["https://m/path"]}"#, "is no mirror"),
            (r#"{"registry-mirrors": ["https://m\"]\n[x"]}"#, "is no mirror"),
            (r#"{"insecure-registries": [".."]}"#, "is no host"),
            (r#"{"insecure-registries": ["http://reg"]}"#, "is no host"),
            (r#"{"insecure-registries": [1]}"#, "insecure-registries: a list of strings"),
        ] {
            let error = format!("{:#}", plan(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
