//! Expressions of nftables: the instructions that a rule is made of, see the section EXPRESSIONS of
//! nft(8), and the numbers in them.

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

// Types of data, which only `nft` reads: by them it prints the keys of a set (libnftables,
// datatype.h: enum datatypes).
pub(super) const IPV4_ADDRESS: u32 = 7;
pub(super) const IPV6_ADDRESS: u32 = 8;
pub(super) const ETHER_ADDRESS: u32 = 9;
pub(super) const PROTOCOL: u32 = 12;
pub(super) const PORT: u32 = 13;
pub(super) const INTERFACE: u32 = 41;

// Priorities of hooks (linux/netfilter_ipv4.h).
pub(super) const PRIORITY_RAW: i32 = -300;
pub(super) const PRIORITY_DSTNAT: i32 = -100;
pub(super) const PRIORITY_FILTER: i32 = 0;
pub(super) const PRIORITY_SRCNAT: i32 = 100;

// Headers of a packet (enum nft_payload_bases).
pub(super) const LINK_HEADER: u32 = 0;
pub(super) const NETWORK_HEADER: u32 = 1;
pub(super) const TRANSPORT_HEADER: u32 = 2;

/// NFT_LOOKUP_F_INV: the expression matches what is not in the set.
pub(super) const NOT_IN: u32 = 1;
/// IPS_DST_NAT of conntrack's status: the destination was translated.
const IPS_DST_NAT: u32 = 0x20;
/// ESTABLISHED and RELATED of conntrack's state (NF_CT_STATE_BIT).
const KNOWN: u32 = 0b110;
/// RTN_LOCAL: the route to an address of this host.
const RTN_LOCAL: u32 = 2;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_NAT_DNAT: u32 = 1;

/// Bytes of an interface's name in a rule, padded with zeros.
pub(crate) const IFNAMSIZ: usize = 16;

/// One of the two families of addresses, with what differs between their headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    /// As names of sets end.
    pub version: char,
    /// NFPROTO_*.
    pub number: u8,
    /// The type of its addresses.
    pub kind: u32,
    /// Bytes of an address.
    pub size: u32,
    /// Offset of the source address in the header.
    pub source: u32,
    /// Offset of the destination address in the header.
    pub destination: u32,
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        version: '4',
        number: NFPROTO_IPV4,
        kind: IPV4_ADDRESS,
        size: 4,
        source: 12,
        destination: 16,
    },
    Family {
        version: '6',
        number: NFPROTO_IPV6,
        kind: IPV6_ADDRESS,
        size: 16,
        source: 8,
        destination: 24,
    },
];

/// The type of several fields that make one key: six bits for each field's type.
pub(super) const fn joined(types: &[u32]) -> u32 {
    let mut all = 0;
    let mut index = 0;
    // A loop, as iterators are not const.
    while index < types.len() {
        all = all << 6 | types[index];
        index += 1;
    }
    all
}

/// An interface's name as rules compare it: padded with zeros, so that a longer name that begins
/// with it does not match.
pub(crate) fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

/// Loads a property of the packet into a register.
pub(super) fn meta(key: MetaKey, register: Register) -> Expressions {
    Expressions::Meta(vec![Meta::DestinationRegister(register), Meta::Key(key)])
}

/// Loads bytes of a header into a register.
pub(super) fn payload(base: u32, offset: u32, length: u32, register: Register) -> Expressions {
    Expressions::Payload(vec![
        Payload::DestinationRegister(register),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Goes on with the rule if the first register compares like this.
pub(super) fn compare(operator: Operator, value: Vec<u8>) -> Expressions {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
}

/// The first register and a mask, in the first register.
pub(super) fn masked(mask: [u8; 4]) -> Expressions {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(Register::Reg1),
        Bitwise::DestinationRegister(Register::Reg1),
        Bitwise::Length(4),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        // The register becomes (register & mask) ^ xor.
        Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
    ])
}

/// Looks a key up in a set, or with `destination` in a map, whose value goes there.
pub(super) fn lookup(
    set: &str,
    source: Register,
    destination: Option<Register>,
    flags: u32,
) -> Expressions {
    let mut attributes = vec![Lookup::Set(set.to_owned()), Lookup::SourceRegister(source)];
    match destination {
        // Of a map: the packet goes on with the value, or leaves the rule where there is none.
        Some(register) => attributes.push(Lookup::DestinationRegister(register)),
        None => attributes.push(Lookup::Flags(flags)),
    }
    Expressions::Lookup(attributes)
}

/// What becomes of the packet, or the chain that it goes to.
pub(super) fn verdict(verdict: Verdict, chain: Option<&str>) -> Expressions {
    let chain = chain.map(|name| VerdictAttribute::Chain(name.to_owned()));
    let attributes = [VerdictAttribute::Code(verdict)].into_iter().chain(chain).collect();
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(attributes)),
    ])
}

/// `masquerade`
pub(super) fn masquerade() -> Expressions {
    other("masq", &[])
}

/// An expression that the netlink crate has no type for, with its attributes by number.
pub(super) fn other(name: &str, attributes: &[(u16, u32)]) -> Expressions {
    let attribute =
        |(kind, value): &(u16, u32)| DefaultNla::new(*kind, value.to_be_bytes().to_vec());
    Expressions::Other {
        expression_type: name.to_owned(),
        attributes: attributes.iter().map(attribute).collect(),
    }
}

/// `meta nfproto ipv4`: only packets of this family go on. A table of family inet sees both.
pub(super) fn of(family: Family) -> Vec<Expressions> {
    // One byte, as the first byte of the register.
    vec![meta(MetaKey::Nfproto, Register::Reg1), compare(Operator::Equal, vec![family.number])]
}

/// `ip saddr @set` or `ip daddr @set`, by the offset of the address.
pub(super) fn in_set(family: Family, offset: u32, set: &str, flags: u32) -> Vec<Expressions> {
    vec![
        payload(NETWORK_HEADER, offset, family.size, Register::Reg1),
        lookup(set, Register::Reg1, None, flags),
    ]
}

/// `fib daddr type local`: the destination is an address of this host.
pub(super) fn local_destination() -> Vec<Expressions> {
    // The result is a number in host byte order. NFTA_FIB_DREG, NFTA_FIB_RESULT with
    // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_FLAGS with NFTA_FIB_F_DADDR.
    vec![
        other("fib", &[(1, Register::Reg1.into()), (2, 3), (3, 2)]),
        compare(Operator::Equal, RTN_LOCAL.to_ne_bytes().to_vec()),
    ]
}

/// `ct status dnat`: the destination of this connection was translated.
pub(super) fn translated() -> Vec<Expressions> {
    // NFTA_CT_DREG, and NFTA_CT_KEY with NFT_CT_STATUS.
    vec![
        other("ct", &[(1, Register::Reg1.into()), (2, 2)]),
        masked(IPS_DST_NAT.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// `ct state established,related`
pub(super) fn of_known_connection() -> Vec<Expressions> {
    // NFTA_CT_DREG, and NFTA_CT_KEY with NFT_CT_STATE.
    vec![
        other("ct", &[(1, Register::Reg1.into()), (2, 0)]),
        masked(KNOWN.to_ne_bytes()),
        compare(Operator::NotEqual, vec![0; 4]),
    ]
}

/// `dnat ip to ADDRESS : PORT`, which are in these registers.
pub(super) fn dnat(family: Family, address: Register, port: Register) -> Expressions {
    // NFTA_NAT_TYPE, NFTA_NAT_FAMILY, NFTA_NAT_REG_ADDR_MIN and NFTA_NAT_REG_PROTO_MIN.
    let family = (2, family.number.into());
    other("nat", &[(1, NFT_NAT_DNAT), family, (3, address.into()), (5, port.into())])
}

/// `drop`
pub(super) fn drop_packet() -> Expressions {
    verdict(Verdict::Other(NF_DROP), None)
}

/// `accept`
pub(super) fn accept_packet() -> Expressions {
    verdict(Verdict::Other(NF_ACCEPT), None)
}
