//! Networks of pods: the rules of nftables, the kernel's switches, and the conf list with its plugins.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use berth_base::config;
use serde_json::Value;
use tokio::process::Command;

use crate::finding::Finding;

/// For how long the rules are tried. Modules may have to be loaded.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is in the names of files that runtimes install for themselves.
const OF_RUNTIMES: [&str; 4] = ["containerd", "crio", "podman", "dockerd"];
/// As in libcni.
const EXTENSIONS: [&str; 3] = ["conflist", "conf", "json"];

pub(crate) struct Facts {
    /// `None`: not tried, for want of privileges.
    rules: Option<Result<(), String>>,
    /// Of /proc/sys/net/ipv4/ip_forward.
    forwards: bool,
    /// Whether bridged packets pass iptables and nftables; `None` without the module.
    bridge_netfilter: Option<bool>,
    conf: Conf,
}

/// The network that pods will get.
enum Conf {
    /// That of berth.
    BuiltIn(PathBuf),
    /// Files, none of which is valid: the error of the first.
    Broken(PathBuf, String),
    /// The first valid file, its plugins, and which of them are not installed.
    File { path: PathBuf, plugins: BTreeSet<String>, absent: Vec<String>, bin_dirs: Vec<PathBuf> },
}

/// Has `berth-bridge` make the rules of the node in a network namespace that ends with it.
pub(crate) async fn try_rules(tries: bool) -> Option<Result<(), String>> {
    if !tries {
        return None;
    }
    let own = std::env::current_exe().unwrap_or_default();
    let mut command = Command::new(own.with_file_name("berth-bridge"));
    command.env_clear().env("CNI_COMMAND", "BERTH_TRY").stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Some(Err(format!("run berth-bridge: {error}"))),
        Err(_) => return Some(Err(format!("no end within {} s", PATIENCE.as_secs()))),
    };
    if output.status.success() {
        return Some(Ok(()));
    }
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let told = error["msg"].as_str().map(str::to_owned);
    Some(Err(told.unwrap_or_else(|| format!("berth-bridge ended with {}", output.status))))
}

pub(crate) fn look(cni: &config::Cni, rules: Option<Result<(), String>>) -> Facts {
    let switch = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim() == "1");
    Facts {
        rules,
        forwards: switch("/proc/sys/net/ipv4/ip_forward").unwrap_or(false),
        bridge_netfilter: switch("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        conf: conf(cni),
    }
}

fn conf(cni: &config::Cni) -> Conf {
    let entries = fs::read_dir(&cni.conf_dir).into_iter().flatten().flatten();
    let is_conf = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        path.is_file() && extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
    };
    let files: BTreeSet<PathBuf> = entries.map(|entry| entry.path()).filter(is_conf).collect();
    let mut bin_dirs = cni.bin_dirs.clone();
    // berth-bridge is beside berthd.
    let own = std::env::current_exe().unwrap_or_default();
    bin_dirs.extend(own.parent().map(Path::to_owned));
    let mut broken = None;
    for path in files {
        match read_plugins(&path) {
            Ok(plugins) => {
                let is_absent = |name: &&String| {
                    !bin_dirs.iter().any(|directory| directory.join(name).is_file())
                };
                let absent = plugins.iter().filter(is_absent).cloned().collect();
                return Conf::File { path, plugins, absent, bin_dirs };
            }
            Err(error) => _ = broken.get_or_insert((path, error.to_string())),
        }
    }
    match broken {
        Some((path, error)) => Conf::Broken(path, error),
        None => Conf::BuiltIn(cni.conf_dir.clone()),
    }
}

fn read_plugins(path: &Path) -> io::Result<BTreeSet<String>> {
    plugins(&serde_json::from_str(&fs::read_to_string(path)?)?)
        .ok_or_else(|| io::Error::other("no plugins"))
}

/// The programs that a conf list needs: its plugins, and theirs for addresses. A file without a list
/// is one plugin. berth's own name for addresses is no program.
fn plugins(conf: &Value) -> Option<BTreeSet<String>> {
    let plugins = match &conf["plugins"] {
        Value::Array(plugins) => plugins.iter().collect(),
        _ => vec![conf],
    };
    let mut found = BTreeSet::new();
    for plugin in plugins {
        let name = plugin["type"].as_str()?;
        found.insert(name.to_owned());
        // berth-bridge keeps addresses itself, as host-local does.
        let ipam = plugin["ipam"]["type"].as_str().filter(|_| name != "berth-bridge");
        found.extend(ipam.map(str::to_owned));
    }
    (!found.is_empty()).then_some(found)
}

pub(crate) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.rules {
        Some(Ok(())) => findings.push(Finding::ok("nftables", "all rules can be made".to_owned())),
        Some(Err(error)) => {
            let remedy = "modprobe -a nf_tables nft_chain_nat nft_masq nft_ct, or a conf list of \
                          plugins that do without";
            // The built-in bridge is not made without its rules; what others need is theirs.
            findings.push(match facts.conf {
                Conf::BuiltIn(_) => Finding::missing("nftables", error.clone(), remedy),
                _ => Finding::warning("nftables", error.clone(), remedy),
            });
        }
        None => {}
    }
    findings.push(match facts.forwards {
        true => Finding::ok("IP forwarding", "on".to_owned()),
        false => Finding::warning(
            "IP forwarding",
            "off: the first pod turns it on, and kubeadm wants it before".to_owned(),
            "sysctl -w net.ipv4.ip_forward=1",
        ),
    });
    findings.push(match facts.bridge_netfilter {
        Some(true) => Finding::ok("br_netfilter", "bridged packets pass the rules".to_owned()),
        Some(false) => Finding::warning(
            "br_netfilter",
            "off: pods do not reach Services whose pod is on the same bridge".to_owned(),
            "sysctl -w net.bridge.bridge-nf-call-iptables=1",
        ),
        None => Finding::warning(
            "br_netfilter",
            "not loaded: pods do not reach Services whose pod is on the same bridge".to_owned(),
            "modprobe br_netfilter",
        ),
    });
    findings.push(judge_conf(&facts.conf));
    findings
}

fn judge_conf(conf: &Conf) -> Finding {
    let subject = "pod network";
    match conf {
        Conf::BuiltIn(directory) => {
            Finding::ok(subject, format!("none in {}: the built-in bridge", directory.display()))
        }
        Conf::Broken(path, error) => Finding::missing(
            subject,
            format!("{}: {error}", path.display()),
            format!("mend it, or mv {0} {0}.bak", path.display()),
        ),
        Conf::File { path, absent, bin_dirs, .. } if !absent.is_empty() => {
            let directory = bin_dirs.first().cloned().unwrap_or_default();
            let absent = absent.join(" ");
            Finding::missing(
                subject,
                format!("{} needs {absent}", path.display()),
                format!("install {absent} into {}", directory.display()),
            )
        }
        Conf::File { path, plugins, .. } => {
            let names: Vec<&str> = plugins.iter().map(String::as_str).collect();
            let found = format!("{} ({})", path.display(), names.join(", "));
            let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase());
            let name = name.unwrap_or_default();
            match OF_RUNTIMES.iter().find(|runtime| name.contains(*runtime)) {
                Some(runtime) => Finding::warning(
                    subject,
                    format!("{found}: made for {runtime}, and used as it is"),
                    format!("for the built-in bridge: mv {0} {0}.bak", path.display()),
                ),
                None => Finding::ok(subject, found),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict::{self, Missing, Ok as Good, Warning};
    use serde_json::json;

    #[test]
    fn the_programs_of_a_conf_list_are_known() {
        let names = |conf: Value| {
            plugins(&conf).map(|found| found.into_iter().collect::<Vec<_>>().join(" "))
        };
        for (conf, expected) in [
            (
                json!({"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}},
                                {"type": "portmap"}]}),
                Some("bridge host-local portmap"),
            ),
            (json!({"type": "ptp"}), Some("ptp")),
            (json!({"type": "berth-bridge", "ipam": {"type": "host-local"}}), Some("berth-bridge")),
            (json!({"plugins": []}), None),
            (json!({"plugins": [{"name": "x"}]}), None),
            (json!([]), None),
        ] {
            assert_eq!(names(conf.clone()).as_deref(), expected, "{conf}");
        }
    }

    #[test]
    fn a_conf_list_of_another_runtime_is_told_and_one_without_its_plugins_is_missing() {
        let file = |name: &str, absent: &[&str]| Conf::File {
            path: Path::new("/etc/cni/net.d").join(name),
            plugins: BTreeSet::from(["bridge".to_owned()]),
            absent: absent.iter().map(|name| (*name).to_owned()).collect(),
            bin_dirs: vec!["/opt/cni/bin".into()],
        };
        for (conf, expected) in [
            (file("10-calico.conflist", &[]), Good),
            (file("10-containerd-net.conflist", &[]), Warning),
            (file("10-calico.conflist", &["bridge"]), Missing),
            (Conf::BuiltIn("/etc/cni/net.d".into()), Good),
            (Conf::Broken("/etc/cni/net.d/a.conf".into(), "odd".to_owned()), Missing),
        ] {
            assert_eq!(judge_conf(&conf).verdict, expected);
        }
    }

    #[test]
    fn rules_are_needed_and_switches_are_advised() {
        let facts = |rules, forwards, bridge_netfilter| Facts {
            rules,
            forwards,
            bridge_netfilter,
            conf: Conf::BuiltIn("/etc/cni/net.d".into()),
        };
        let no = || Some(Err("EOPNOTSUPP".to_owned()));
        for (facts, expected) in [
            (facts(Some(Ok(())), true, Some(true)), &[Good, Good, Good, Good][..]),
            (facts(no(), false, Some(false)), &[Missing, Warning, Warning, Good]),
            (facts(None, true, None), &[Good, Warning, Good]),
        ] {
            let found: Vec<Verdict> = judge(&facts).iter().map(|finding| finding.verdict).collect();
            assert_eq!(found, expected);
        }
    }
}
