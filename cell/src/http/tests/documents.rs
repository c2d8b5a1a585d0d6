use std::collections::BTreeSet;

use cellbus_bus::cloudevent::Code;
use cellbus_directory::FailureCode;

use super::*;

#[tokio::test]
async fn every_route_is_documented() {
    let server = Server::start().await;
    let document = ok(server.get("/v1/openapi.json").await).await;
    let documented: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|m| (m.to_uppercase(), path.clone())))
        .collect();
    let served: BTreeSet<(String, String)> =
        routes::ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    assert_eq!(served.len(), routes::ROUTES.len(), "a route is listed twice");
    assert_eq!(served, documented);
    // And its parameters are those that it knows.
    for route in routes::ROUTES {
        let operation = &document["paths"][route.path][route.method.to_lowercase()];
        let parameters: BTreeSet<&str> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| p["in"] == "query")
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        assert_eq!(parameters, route.parameters.iter().copied().collect(), "{} {}", route.method, route.path);
        assert!(operation["summary"].as_str().is_some_and(|s| !s.is_empty()), "{} {}", route.method, route.path);
    }
    assert!(document["components"]["schemas"]["Problem"].is_object());
}

/// Every code of the API and of failed jobs has a page. (The store's codes are tested beside it.)
#[test]
fn every_code_has_a_page() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/docs/errors");
    let mut codes: BTreeSet<String> = Code::ALL.iter().map(|code| code.as_str().to_owned()).collect();
    codes.extend(FailureCode::ALL.iter().map(|code| code.as_str().to_owned()));
    codes.extend(CODES.iter().map(|code| (*code).to_owned()));
    codes.extend(crate::gateway::CODES.iter().map(|code| (*code).to_owned()));
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "README" {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("# {name}\n\n")), "{name} begins with its code");
        assert!(text.contains("\n**What to do.** "), "{name} says what to do");
        pages.insert(name);
    }
    let missing: Vec<_> = codes.difference(&pages).collect();
    assert!(missing.is_empty(), "without a page in ops/docs/errors: {missing:?}");
}
