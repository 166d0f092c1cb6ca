//! The files that all containers of a pod see: /etc/hosts, /etc/resolv.conf, /etc/hostname.

use std::{fmt::Write, fs, io, net::IpAddr, path::Path};

use anyhow::Context;
use berth_base::{
    id::SandboxId,
    layout::{self, Layout},
};

use super::config::{Dns, Meta, NamespaceMode};

const HOSTS: &str = "\
    127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

/// Writes the files that do not depend on the pod's addresses into the sandbox's directory.
/// Containers get them as bind mounts, unless the request mounts something else there.
pub(super) fn write_fixed(layout: &Layout, directory: &Path, meta: &Meta) -> anyhow::Result<()> {
    let config = &meta.config;
    if let Some(other) = &config.join_network {
        share(layout, other, directory, layout::sandbox::RESOLV_CONF)?;
        return share(layout, other, directory, layout::sandbox::HOSTNAME);
    }
    let resolv_conf = match (&config.resolv_conf, &config.dns) {
        (Some(text), _) => text.clone(),
        (None, Some(dns)) => resolv_conf(dns),
        (None, None) => read_host("/etc/resolv.conf")?,
    };
    write(directory, meta, layout::sandbox::RESOLV_CONF, &resolv_conf)?;
    let hostname = format!("{}\n", config.effective_hostname()?);
    write(directory, meta, layout::sandbox::HOSTNAME, &hostname)
}

/// Writes /etc/hosts, as `write_fixed` does the others. The kubelet mounts one of its own there.
pub(super) fn write_hosts(
    layout: &Layout,
    directory: &Path,
    meta: &Meta,
    addresses: &[IpAddr],
) -> anyhow::Result<()> {
    let config = &meta.config;
    if let Some(other) = &config.join_network {
        return share(layout, other, directory, layout::sandbox::HOSTS);
    }
    let mut text = match config.namespaces.network {
        // The addresses are the host's, so that the names in its file are right in the pod.
        NamespaceMode::Node => read_host("/etc/hosts")? + &config.hosts,
        _ => {
            let hostname = config.effective_hostname()?;
            let names = match config.domainname.as_str() {
                "" => hostname,
                domain => format!("{hostname}.{domain} {hostname}"),
            };
            hosts(&config.hosts, &names, addresses)
        }
    };
    for line in &config.extra_hosts {
        let _ = writeln!(text, "{line}");
    }
    write(directory, meta, layout::sandbox::HOSTS, &text)
}

fn write(directory: &Path, meta: &Meta, name: &str, text: &str) -> anyhow::Result<()> {
    let path = directory.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    // With SELinux, a container may not read files with the label of the daemon's data.
    meta.labels.as_ref().map_or(Ok(()), |labels| labels.apply(&path))
}

/// The contents of a file of the host; nothing where there is no such file. Text that is not UTF-8
/// is passed on as far as it can be read.
fn read_host(path: &str) -> anyhow::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

/// Makes a file of another sandbox this one's as well: what is written to it later is seen by both.
fn share(layout: &Layout, other: &SandboxId, directory: &Path, name: &str) -> anyhow::Result<()> {
    let source = layout.sandbox(other).join(name);
    fs::hard_link(&source, directory.join(name))
        .with_context(|| format!("share {}", source.display()))
}

/// hosts(5), with further lines, and one for each of the pod's addresses.
fn hosts(more: &str, names: &str, addresses: &[IpAddr]) -> String {
    let mut text = HOSTS.to_owned() + more;
    for address in addresses.iter().filter(|_| !names.is_empty()) {
        // To write to a string cannot fail.
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// resolv.conf(5).
fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_as_their_manual_pages_say() {
        let dns = Dns {
            servers: vec!["10.0.0.10".into(), "1.1.1.1".into()],
            searches: vec!["a".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a b\nnameserver 10.0.0.10\nnameserver 1.1.1.1\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&Dns { servers: vec![], searches: vec![], options: vec![] }), "");
        let text = hosts("1.2.3.4\tfoo\n", "pod.dom pod", &["10.88.0.2".parse().unwrap()]);
        assert!(text.ends_with("\n1.2.3.4\tfoo\n10.88.0.2\tpod.dom pod\n"));
    }
}
