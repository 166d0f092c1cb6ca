//! `--link`: names of other containers in /etc/hosts, and what their ports are in the environment.
//! Pure functions.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use crate::{
    http::error::{Failure, Result},
    ports::Port,
};

/// A container, as one that is linked to it sees it.
#[derive(Debug)]
pub(crate) struct Linked<'a> {
    pub alias: &'a str,
    pub name: &'a str,
    pub id: &'a str,
    pub address: IpAddr,
    pub exposed: &'a BTreeSet<Port>,
    pub env: &'a [String],
}

/// The name and the alias of a link: `NAME`, `NAME:ALIAS`, or as inspect shows it,
/// `/NAME:/OWN/ALIAS`.
///
/// # Errors
/// As dockerd.
pub(crate) fn parse(link: &str) -> Result<(&str, &str)> {
    let parts: Vec<&str> = link.split(':').collect();
    let (name, alias) = match parts[..] {
        [name] => (name, name),
        [name, alias] => (name, alias),
        _ => return Err(bad(link)),
    };
    let alias = alias.rsplit('/').next().unwrap_or(alias);
    let name = name.strip_prefix('/').unwrap_or(name);
    match name.is_empty() || alias.is_empty() {
        true => Err(bad(link)),
        false => Ok((name, alias)),
    }
}

fn bad(link: &str) -> Failure {
    Failure::new(http::StatusCode::INTERNAL_SERVER_ERROR, format!("bad format for links: {link}"))
}

impl Linked<'_> {
    /// Its line of /etc/hosts.
    pub(crate) fn hosts_line(&self) -> String {
        let mut line = format!("{}\t{} {}", self.address, self.alias, &self.id[..12]);
        if self.name != self.alias {
            // To write to a string cannot fail.
            let _ = write!(line, " {}", self.name);
        }
        line + "\n"
    }

    /// The variables of the container `own` that is linked to it.
    pub(crate) fn env(&self, own: &str) -> Vec<(String, String)> {
        let prefix = self.alias.replace('-', "_").to_ascii_uppercase();
        let mut env = vec![(format!("{prefix}_NAME"), format!("/{own}/{}", self.alias))];
        let url =
            |port: &Port| format!("{}://{}:{}", port.protocol.as_str(), self.address, port.number);
        let of = |port: &Port| {
            let protocol = port.protocol.as_str().to_ascii_uppercase();
            format!("{prefix}_PORT_{}_{protocol}", port.number)
        };
        // TCP first, and the lowest of those.
        let mut ports: Vec<&Port> = self.exposed.iter().collect();
        ports.sort_by_key(|port| (port.protocol, port.number));
        env.extend(ports.first().map(|first| (format!("{prefix}_PORT"), url(first))));
        let is_next = |one: &&Port, next: &&Port| {
            one.protocol == next.protocol && one.number.checked_add(1) == Some(next.number)
        };
        for range in ports.chunk_by(is_next) {
            if let [first, .., last] = range {
                let name = of(first);
                env.extend([
                    (format!("{name}_START"), url(first)),
                    (format!("{name}_END"), url(last)),
                    (format!("{name}_PORT_START"), first.number.to_string()),
                    (format!("{name}_PORT_END"), last.number.to_string()),
                ]);
            }
            for port in range {
                let name = of(port);
                env.extend([
                    (name.clone(), url(port)),
                    (format!("{name}_ADDR"), self.address.to_string()),
                    (format!("{name}_PORT"), port.number.to_string()),
                    (format!("{name}_PROTO"), port.protocol.as_str().to_owned()),
                ]);
            }
        }
        for entry in self.env {
            if let Some((name, value)) = entry.split_once('=')
                && !["HOME", "PATH"].contains(&name)
            {
                env.push((format!("{prefix}_ENV_{name}"), value.to_owned()));
            }
        }
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_in_all_their_forms() {
        assert_eq!(parse("redis").unwrap(), ("redis", "redis"));
        assert_eq!(parse("redis:db").unwrap(), ("redis", "db"));
        assert_eq!(parse("/redis:/web/db").unwrap(), ("redis", "db"));
        assert_eq!(parse("a:b:c").unwrap_err().message, "bad format for links: a:b:c");
    }

    #[test]
    fn a_link_is_a_line_and_variables() {
        let exposed = crate::ports::exposed(["80/tcp", "9000-9001/udp"]).unwrap();
        let env = ["PATH=/bin".to_owned(), "A=b".to_owned()];
        let linked = Linked {
            alias: "my-db",
            name: "redis",
            id: "9fb7def01d9bcff102d0",
            address: [172, 17, 0, 2].into(),
            exposed: &exposed,
            env: &env,
        };
        assert_eq!(linked.hosts_line(), "172.17.0.2\tmy-db 9fb7def01d9b redis\n");
        let env = linked.env("web");
        for (name, value) in [
            ("MY_DB_NAME", "/web/my-db"),
            ("MY_DB_PORT", "tcp://172.17.0.2:80"),
            ("MY_DB_PORT_80_TCP", "tcp://172.17.0.2:80"),
            ("MY_DB_PORT_80_TCP_ADDR", "172.17.0.2"),
            ("MY_DB_PORT_9000_UDP_END", "udp://172.17.0.2:9001"),
            ("MY_DB_PORT_9000_UDP_PORT_START", "9000"),
            ("MY_DB_PORT_9001_UDP_PROTO", "udp"),
            ("MY_DB_ENV_A", "b"),
        ] {
            assert!(env.contains(&(name.to_owned(), value.to_owned())), "{name}: {env:?}");
        }
        assert!(!env.iter().any(|(name, _)| name.ends_with("PATH")));
    }
}
