//! Every service, message, field and enum of `api.proto` against the published table, line by line.

use std::collections::BTreeSet;

use berth_proto::DESCRIPTORS;
use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};

const TABLE: &str = include_str!("cri-v1.37.txt");

/// One line of the table for each thing; what is deprecated has the same wire.
fn published() -> BTreeSet<String> {
    let mut service = "";
    let mut lines = BTreeSet::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let line = line.replace(" (deprecated)", "");
        match (line.strip_prefix("service "), line.trim().strip_prefix("rpc ")) {
            (Some(name), _) => {
                service = if name == "RuntimeService" { "RuntimeService" } else { "ImageService" }
            }
            (None, Some(rpc)) => lines.extend([format!("{service}.{rpc}")]),
            (None, None) => lines.extend([line]),
        }
    }
    lines
}

fn ours() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).expect("the build wrote it");
    let mut lines = BTreeSet::new();
    for file in set.file.iter().filter(|file| file.package() == "runtime.v1") {
        file.service.iter().for_each(|service| lines.extend(rpcs(service)));
        lines.extend(file.enum_type.iter().map(|item| enumeration("", item)));
        file.message_type.iter().for_each(|item| message(item, &mut lines));
    }
    lines
}

fn rpcs(service: &ServiceDescriptorProto) -> Vec<String> {
    let short = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let rpc = |method: &prost_types::MethodDescriptorProto| {
        let stream = if method.server_streaming() { "stream " } else { "" };
        let (input, output) = (short(method.input_type()), short(method.output_type()));
        format!("{}.{}: {input} -> {stream}{output}", service.name(), method.name())
    };
    service.method.iter().map(rpc).collect()
}

fn enumeration(prefix: &str, item: &EnumDescriptorProto) -> String {
    let values: Vec<String> =
        item.value.iter().map(|value| format!("{} {}", value.number(), value.name())).collect();
    format!("enum {prefix}{}: {}", item.name(), values.join(", "))
}

fn message(item: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let fields: Vec<String> = item.field.iter().map(|field| describe(field, item)).collect();
    let fields = if fields.is_empty() { "(empty)".to_owned() } else { fields.join(", ") };
    lines.insert(format!("message {}: {fields}", item.name()));
    lines.extend(
        item.enum_type.iter().map(|nested| enumeration(&format!("{}.", item.name()), nested)),
    );
}

fn describe(field: &FieldDescriptorProto, parent: &DescriptorProto) -> String {
    let entry = parent.nested_type.iter().find(|nested| {
        nested.options.as_ref().is_some_and(|options| options.map_entry())
            && field.type_name().ends_with(&format!(".{}", nested.name()))
    });
    let kind = match entry {
        Some(entry) => {
            format!("map<{},{}>", type_name(&entry.field[0]), type_name(&entry.field[1]))
        }
        None if field.label() == Label::Repeated => format!("{}[]", type_name(field)),
        None => type_name(field),
    };
    let member = if field.oneof_index.is_some() { "?" } else { "" };
    format!("{} {} {kind}{member}", field.number(), field.name())
}

fn type_name(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => {
            field.type_name().rsplit('.').next().unwrap_or_default().to_owned()
        }
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

#[test]
fn everything_is_on_the_wire_as_published() {
    let (published, ours) = (published(), ours());
    let missing: Vec<_> = published.difference(&ours).collect();
    let invented: Vec<_> = ours.difference(&published).collect();
    assert!(
        missing.is_empty() && invented.is_empty(),
        "published, not ours:\n{missing:#?}\nours, not published:\n{invented:#?}"
    );
    assert!(published.len() > 200, "the table has {} lines", published.len());
}
