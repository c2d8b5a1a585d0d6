//! What intake costs: bytes of a CloudEvent to a checked job. The bound is 5 us for a usual provision.

use cellbus_bus::cloudevent::{Limits, TenantFrom, TenantRule, Tenants, parse_batch, parse_structured};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PROVISION: &str = r#"{"specversion":"1.0","id":"order-4711","source":"/portal/eu",
 "type":"io.cellbus.job.provision.v1","tenant":"acme","datacontenttype":"application/json","traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
 "data":{"name":"web","count":3,"vcpus":4,"memory_mib":8192,"disk_gib":40,"image":"debian-12",
 "labels":{"app":"shop"},"require":{"gear":"g3"},"policy":{"spread":"manager"},"deadline_seconds":600}}"#;

fn intake(criterion: &mut Criterion) {
    let tenant = TenantRule { from: TenantFrom::Attribute, known: &Tenants::Any };
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("cloudevent");
    group.throughput(Throughput::Elements(1));
    group.bench_function("provision", |b| {
        b.iter(|| parse_structured(std::hint::black_box(PROVISION.as_bytes()), tenant, &limits));
    });
    let start = r#"{"specversion":"1.0","id":"1","source":"/p","type":"io.cellbus.job.start.v1","tenant":"acme","subject":"f44dec3f-0dad-599c-bfc4-bbe000698666"}"#;
    group.bench_function("start", |b| {
        b.iter(|| parse_structured(std::hint::black_box(start.as_bytes()), tenant, &limits));
    });
    let refused = PROVISION.replace("8192", "0");
    group.bench_function("refused", |b| {
        b.iter(|| parse_structured(std::hint::black_box(refused.as_bytes()), tenant, &limits));
    });
    let members: Vec<String> = (0..1_000).map(|i| PROVISION.replace("order-4711", &format!("order-{i}"))).collect();
    let batch = format!("[{}]", members.join(","));
    group.throughput(Throughput::Elements(1_000));
    group.bench_function("batch of 1000", |b| {
        b.iter(|| parse_batch(std::hint::black_box(batch.as_bytes()), tenant, &limits));
    });
    group.finish();
}

criterion_group! { name = benches; config = Criterion::default().sample_size(20); targets = intake }
criterion_main!(benches);
