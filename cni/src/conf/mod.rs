//! The configuration of `berth-bridge`: the keys of the upstream bridge plugin, of host-local, and
//! of the capabilities of portmap and bandwidth, which are built in.

mod check;
mod ipam;
mod keys;

use berth_cni::{Error, code};

pub(crate) use ipam::{Ipam, Local, Range, plus};
pub(crate) use keys::{Conf, Isolation, Trunk};

/// Parses and checks the configuration on standard input.
///
/// # Errors
/// It is not JSON (code 6), or a value makes no sense (code 7).
pub(crate) fn parse(text: &str) -> Result<Conf, Error> {
    let mut conf: Conf = serde_json::from_str(text).map_err(|error| {
        let code = if error.is_data() { code::INVALID_CONFIG } else { code::DECODE };
        Error::new(code, format!("configuration: {error}"))
    })?;
    check::check(&mut conf).map_err(|msg| Error::new(code::INVALID_CONFIG, msg))?;
    Ok(conf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(ipam: &str, more: &str) -> Result<Conf, Error> {
        super::parse(&format!(r#"{{"cniVersion":"1.1.0","name":"n",{more}"ipam":{ipam}}}"#))
    }

    #[test]
    fn mistakes_are_named() {
        let good = r#"{"type":"berth-local","subnet":"10.1.0.0/24","rangeStart":"10.1.0.9"}"#;
        parse(good, "").unwrap();
        for (ipam, more, what) in [
            (r#"{"type":"../dhcp"}"#, "", "name of a plugin"),
            (r#"{"type":"host-local"}"#, "", "no subnet"),
            (r#"{"type":"host-local","ranges":[[]]}"#, "", "no subnet"),
            (r#"{"type":"host-local","subnet":"10.1.0.0/31"}"#, "", "no room"),
            (r#"{"type":"host-local","subnet":"10.1.0.7/24"}"#, "", "10.1.0.0/24 was meant"),
            (
                r#"{"type":"host-local","subnet":"10.1.0.0/24","gateway":"10.2.0.1"}"#,
                "",
                "10.2.0.1",
            ),
            (
                r#"{"type":"host-local","subnet":"10.1.0.0/24",
                    "rangeStart":"10.1.0.9","rangeEnd":"10.1.0.3"}"#,
                "",
                "after",
            ),
            (
                r#"{"type":"host-local",
                    "ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"10.1.0.0/16"}]]}"#,
                "",
                "overlap",
            ),
            (
                r#"{"type":"host-local",
                    "ranges":[[{"subnet":"10.1.0.0/24"},{"subnet":"fd00::/64"}]]}"#,
                "",
                "mixes",
            ),
            (r#"{"type":"host-local","ranges":[[{"subnet":"10.1.0"}]]}"#, "", "invalid"),
            (good, r#""bridge":"a/b","#, "interface name"),
            (good, r#""bridge":"a-name-that-is-too-long","#, "interface name"),
            (good, r#""hairpinMode":true,"promiscMode":true,"#, "exclude"),
            (good, r#""vlan":4095,"#, "vlan"),
            (good, r#""vlanTrunk":[{"minID":5}],"#, "minID"),
            (good, r#""vlanTrunk":[{"minID":5,"maxID":4}],"#, "within"),
            (good, r#""disableContainerInterface":true,"#, "no place"),
            (
                good,
                r#""runtimeConfig":{"portMappings":[{"hostPort":0,"containerPort":1}]},"#,
                "hostPort 0",
            ),
            (good, r#""runtimeConfig":{"bandwidth":{"ingressRate":1}},"#, "come together"),
        ] {
            let error = parse(ipam, more).unwrap_err();
            assert!(error.msg.contains(what), "{ipam} {more}: {}", error.msg);
        }
    }

    #[test]
    fn ranges_of_the_runtime_come_first_and_both_families_are_served() {
        let more = r#""runtimeConfig":{"ipRanges":[[{"Subnet":"10.9.0.0/24","RangeStart":""}]]},"#;
        let conf =
            parse(r#"{"type":"host-local","ranges":[[{"subnet":"fd00::/64"}]]}"#, more).unwrap();
        let Ipam::Local(local) = conf.ipam else { panic!("not local") };
        let texts: Vec<String> = local.sets.iter().flatten().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.9.0.1 to 10.9.0.254", "fd00::1 to fd00::ffff:ffff:ffff:ffff"]);
        assert_eq!(local.sets[0][0].capacity(), 253);
    }

    #[test]
    fn another_ipam_is_not_read() {
        let conf = parse(r#"{"type":"calico-ipam","subnet":"usePodCidr"}"#, "").unwrap();
        assert!(matches!(conf.ipam, Ipam::Delegate(name) if name == "calico-ipam"));
    }
}
