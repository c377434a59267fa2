//! The document of the API that is checked in is that of the code.

#[test]
fn the_document_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let text = controller::api::openapi().unwrap() + "\n";
    if std::env::var_os("ORIMONO_WRITE_OPENAPI").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/openapi.json is old: ORIMONO_WRITE_OPENAPI=1 cargo test -p controller --test openapi"
    );
}
