//! What a configuration may not say. Each mistake is named before anything is made, so that an ADD
//! does not fail half-way by the kernel's EINVAL.

use berth_cni::{Bandwidth, is_identifier};

use super::{
    ipam::{Ipam, Range, ranges},
    keys::Conf,
};

/// Checks the keys against each other, and puts the range sets of the capability `ipRanges` before
/// those of `ipam`.
///
/// # Errors
/// The first mistake, in words.
pub(super) fn check(conf: &mut Conf) -> Result<(), String> {
    // The name is part of the comment of an nftables element, which has 255 bytes, together with
    // the container's id and interface.
    if !is_identifier(&conf.name) || conf.name.len() > 100 {
        return Err(format!("\"{}\" is not a network name", conf.name));
    }
    // The kernel's names of interfaces have at most IFNAMSIZ - 1 = 15 bytes.
    if conf.bridge.is_empty() || conf.bridge.len() > 15 || !is_identifier(&conf.bridge) {
        return Err(format!("\"{}\" is not an interface name", conf.bridge));
    }
    // As upstream's plugin: both are ways to let a pod reach itself through the bridge.
    if conf.hairpin_mode && conf.promisc_mode {
        return Err(
            "hairpinMode and promiscMode exclude one another: pods would see packets twice"
                .to_owned(),
        );
    }
    // IEEE 802.1Q reserves 4095, and 0, which stands for no VLAN here.
    if conf.vlan > 4094 {
        return Err(format!("vlan {} is not one of 1 to 4094", conf.vlan));
    }
    // With a VLAN the gateways' addresses are on an interface `BRIDGE.VLAN`.
    if conf.gateway_interface().len() > 15 {
        return Err(format!(
            "{} is too long for the name of an interface",
            conf.gateway_interface()
        ));
    }
    for trunk in &conf.vlan_trunk {
        trunk.ids()?;
    }
    if conf.disable_container_interface && !matches!(conf.ipam, Ipam::None) {
        return Err(
            "disableContainerInterface leaves no place for the addresses of ipam".to_owned()
        );
    }
    if let Some(mapping) = conf.port_mappings().iter().find(|mapping| mapping.host_port == 0) {
        return Err(format!(
            "portMappings: containerPort {} has the hostPort 0",
            mapping.container_port
        ));
    }
    if let Some(bandwidth) = &conf.runtime_config.bandwidth {
        check_bandwidth(bandwidth)?;
    }
    // The ranges of the capability come first, as in host-local: the runtime knows more of this pod
    // than the file does.
    if let Ipam::Local(local) = &mut conf.ipam {
        let more = std::mem::take(&mut conf.runtime_config.ip_ranges);
        let sets: Result<Vec<Vec<Range>>, String> = more.into_iter().map(ranges).collect();
        local.sets.splice(0..0, sets?);
        local.check()?;
    }
    Ok(())
}

/// As upstream: a rate needs a burst, and a burst has to fit the 32 bits of the kernel's
/// TCA_TBF_BURST, in bytes.
fn check_bandwidth(bandwidth: &Bandwidth) -> Result<(), String> {
    for (direction, rate, burst) in [
        ("ingress", bandwidth.ingress_rate, bandwidth.ingress_burst),
        ("egress", bandwidth.egress_rate, bandwidth.egress_burst),
    ] {
        if (rate == 0) != (burst == 0) {
            return Err(format!("bandwidth: {direction}Rate and {direction}Burst come together"));
        }
        if burst / 8 >= u64::from(u32::MAX) {
            return Err(format!("bandwidth: {direction}Burst {burst} is more than 4 GiB"));
        }
    }
    Ok(())
}
