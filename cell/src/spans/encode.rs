//! Spans as OTLP has them.

use cellbus_bus::Env;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as Encoded, Status};

use super::{Context, Part, Span, span_id};

/// What every span of this process says of it.
pub(super) fn resource(version: &str, instance: u64) -> Resource {
    let said = [
        ("service.name", "cellbus".to_owned()),
        ("service.version", version.to_owned()),
        ("service.instance.id", format!("{instance:016x}")),
    ];
    Resource { attributes: said.into_iter().map(|(key, text)| attribute(key, text)).collect(), ..Resource::default() }
}

/// One request with these spans.
pub(super) fn request(resource: &Resource, spans: Vec<Encoded>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope { name: "cellbus".to_owned(), ..InstrumentationScope::default() };
    let spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
    let of = ResourceSpans { resource: Some(resource.clone()), scope_spans: vec![spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![of] }
}

/// A span of a job that brought `context` along, if any.
pub(super) fn span(env: &Env, span: Span, context: Option<Context>) -> Encoded {
    let job = span_id(&span.job, None);
    let own = || env.random_u64().max(1).to_be_bytes();
    let (name, kind, id, parent) = match span.part {
        Part::Job(kind) => {
            let parent = context.map(|context| context.parent.to_vec()).unwrap_or_default();
            (format!("job {kind}"), SpanKind::Consumer, job, parent)
        }
        Part::Submit => ("submit".to_owned(), SpanKind::Server, own(), job.to_vec()),
        Part::Ingress => ("ingress".to_owned(), SpanKind::Consumer, own(), job.to_vec()),
        Part::Step(step, vm, op) => {
            (format!("step {step}"), SpanKind::Client, span_id(&span.job, Some((vm, op))), job.to_vec())
        }
        Part::Operation(kind, vm, op) => {
            let step = span_id(&span.job, Some((vm, op)));
            (format!("operation {kind}"), SpanKind::Server, own(), step.to_vec())
        }
        Part::Outcome => ("outcome".to_owned(), SpanKind::Producer, own(), job.to_vec()),
    };
    let mut attributes = vec![attribute("cellbus.job", span.job.to_string())];
    if let Part::Step(_, vm, op) | Part::Operation(_, vm, op) = span.part {
        attributes.push(attribute("cellbus.vm", vm.to_string()));
        attributes.push(attribute("cellbus.op", op.0.to_string()));
    }
    attributes.extend(span.attributes.into_iter().map(|(key, text)| attribute(key, text)));
    let ended = span.ended.0.saturating_mul(1_000_000);
    let took = u64::try_from(span.took.as_nanos()).unwrap_or(u64::MAX);
    let status = span.failed.map(|message| Status { message, code: StatusCode::Error.into() });
    Encoded {
        trace_id: context.map_or(*span.job.uuid().as_bytes(), |context| context.trace).to_vec(),
        span_id: id.to_vec(),
        parent_span_id: parent,
        name,
        kind: kind.into(),
        start_time_unix_nano: ended.saturating_sub(took),
        end_time_unix_nano: ended,
        attributes,
        status,
        ..Encoded::default()
    }
}

fn attribute(key: &str, text: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(text)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}
