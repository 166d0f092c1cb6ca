//! The files that all containers of a pod see: /etc/hosts, /etc/resolv.conf, /etc/hostname.

use std::{fmt::Write, fs, io, net::IpAddr, path::Path};

use anyhow::Context;

use super::{Dns, Meta, NamespaceMode};
use crate::layout;

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

pub(super) fn write(directory: &Path, meta: &Meta, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let config = &meta.config;
    let host_network = config.namespaces.network == NamespaceMode::Node;
    let hostname = match config.shares_uts() {
        true => nix::unistd::gethostname().context("gethostname")?.to_string_lossy().into_owned(),
        false => config.hostname.clone(),
    };
    let hosts = match host_network {
        true => read_host("/etc/hosts")?,
        false => hosts(&hostname, addresses),
    };
    let resolv_conf = match &config.dns {
        Some(dns) => resolv_conf(dns),
        None => read_host("/etc/resolv.conf")?,
    };
    for (name, text) in [
        (layout::sandbox::HOSTS, hosts),
        (layout::sandbox::RESOLV_CONF, resolv_conf),
        (layout::sandbox::HOSTNAME, format!("{hostname}\n")),
    ] {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        meta.labels.as_ref().map_or(Ok(()), |labels| labels.apply(&path))?;
    }
    Ok(())
}

/// A host without the file has nothing to say.
fn read_host(path: &str) -> anyhow::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("read {path}")),
    }
}

fn hosts(hostname: &str, addresses: &[IpAddr]) -> String {
    let mut text = HOSTS.to_owned();
    for address in addresses.iter().filter(|_| !hostname.is_empty()) {
        let _ = writeln!(text, "{address}\t{hostname}");
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
        assert_eq!(resolv_conf(&dns), "search a b\nnameserver 10.0.0.10\nnameserver 1.1.1.1\noptions ndots:5\n");
        assert_eq!(resolv_conf(&Dns { servers: vec![], searches: vec![], options: vec![] }), "");
        assert!(hosts("pod", &["10.88.0.2".parse().unwrap()]).ends_with("\n10.88.0.2\tpod\n"));
    }
}
