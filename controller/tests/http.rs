//! The API as any client sees it.

mod support;

use std::io::BufRead;
use std::sync::Arc;

use controller::store::MemoryStore;
use controller::{Controller, api};
use support::{answer, send};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn changes_are_told_counted_and_refused_in_one_form() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let controller = Arc::new(Controller::start(Box::new(MemoryStore::default())).unwrap());
    let listener = api::listen(&socket).unwrap();
    assert!(
        api::listen(&socket).is_err(),
        "a second controller took the socket"
    );
    tokio::spawn(api::serve(listener, controller, std::future::pending()));
    let asked = tokio::task::spawn_blocking(move || {
        let mut events = send(&socket, "GET /v1/events", "").lines();
        // The answer has begun: from now on nothing is missed.
        assert_eq!(events.next().unwrap().unwrap(), "HTTP/1.1 200 OK");
        let made = answer(&socket, "POST /v1/objects/server-profile/s1", "{}");
        assert!(made.starts_with("HTTP/1.1 200"), "{made}");
        let event = events
            .map(Result::unwrap)
            .find(|line| line.starts_with("data:"))
            .unwrap();
        assert!(
            event.contains("\"event\":\"changed\"") && event.contains("s1"),
            "{event}"
        );

        let metrics = answer(&socket, "GET /metrics", "");
        assert!(
            metrics.contains("orimono_objects{kind=\"server-profile\"} 1"),
            "{metrics}"
        );
        assert!(
            metrics.contains("orimono_transactions_total 1"),
            "{metrics}"
        );

        for (request, body, status) in [
            ("GET /v1/objects/vnic/a.s1", "", "404"),
            ("GET /v1/objects/nothing", "", "422"),
            ("POST /v1/objects/vnic/a.s1", "{", "422"),
            ("POST /v1/objects/vnic/a.s1", "{\"mtu\":1}", "422"),
            ("POST /v1/objects/vnic/a.nobody", "{}", "404"),
            ("DELETE /v1/objects/mac-pool/default", "", "409"),
            (
                "POST /v1/transactions",
                "{\"commands\":[],\"if-revision\":9}",
                "409",
            ),
            ("GET /v1/audit?before=x", "", "422"),
        ] {
            let text = answer(&socket, request, body);
            assert!(
                text.starts_with(&format!("HTTP/1.1 {status}")),
                "{request}: {text}"
            );
            assert!(
                text.contains("\"problem\"") && text.contains("\"next\""),
                "{request}: {text}"
            );
        }
        let name = answer(
            &socket,
            "POST /v1/objects/qos-network/gold%2Fweb",
            "{\"cir\":\"1m\"}",
        );
        assert!(name.starts_with("HTTP/1.1 200"), "{name}");
    });
    asked.await.unwrap();
}
