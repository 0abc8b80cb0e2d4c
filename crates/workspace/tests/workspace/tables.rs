//! Tables of Unity Catalog: where they lie, and with which credentials. Methods and paths are those that PyPI's `databricks-sdk`
//! 0.162.0 was seen to send, but that it asks for credentials by version 2.0 of the interface. The open Unity Catalog server has 2.1
//! only, so that is asked for first.

use std::time::Duration;

use serde_json::{Value, json};
use tessera_workspace::{Access, TableName, TablePlace, Workspace, WorkspaceError};

use super::server::{Fault, Server};

const TOKEN: &str = "dapi-s3cret";
const CREDENTIALS: &str = "temporary-table-credentials";

struct Bench {
    server: Server,
}

impl Bench {
    /// A workspace with a table, for which it grants something.
    fn new(table: Value, granted: Value) -> Self {
        let server = Server::start(TOKEN);
        server.catalog("tables/main.default.chat", &table.to_string());
        server.catalog(CREDENTIALS, &granted.to_string());
        Self { server }
    }

    fn ask_as(&self, name: &str, token: &str) -> Result<TablePlace, WorkspaceError> {
        let host = self.server.address();
        let variable =
            |name: &str| Some(if name == "DATABRICKS_HOST" { host.clone() } else { token.to_owned() });
        let mut workspace = Workspace::find("a table is wanted", variable).unwrap();
        workspace.pause = Duration::from_millis(1);
        workspace.table(&TableName::parse(name).unwrap())
    }

    fn ask(&self) -> Result<TablePlace, WorkspaceError> {
        self.ask_as("main.default.chat", TOKEN)
    }

    fn error(&self) -> String {
        let error = self.ask().unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("s3cret"), "{text}");
        error.to_string()
    }
}

/// A table as a workspace tells of it, with some of what is not needed.
fn table(kind: &str, format: &str, location: &str) -> Value {
    json!({
        "name": "chat", "catalog_name": "main", "schema_name": "default", "full_name": "main.default.chat", "table_type": kind,
        "data_source_format": format, "storage_location": location, "table_id": "b1c9e2f0-0000-4000-8000-000000000000",
        "columns": [{"name": "messages", "type_name": "ARRAY"}], "properties": {"delta.minReaderVersion": "1"}, "owner": null,
    })
}

#[test]
fn a_table_has_a_place_and_credentials_of_its_store() {
    let aws = json!({"access_key_id": "id", "secret_access_key": "s3cret", "session_token": "t-s3cret", "access_point": ""});
    let keys = Access::Aws {
        access_key_id: "id".to_owned(),
        secret_access_key: "s3cret".to_owned(),
        session_token: Some("t-s3cret".to_owned()),
    };
    let cases = [
        (
            "s3://bucket/t",
            "MANAGED",
            json!({"aws_temp_credentials": aws, "expiration_time": 1, "url": "s3://bucket/t"}),
            keys,
        ),
        (
            "abfss://box@account.dfs.core.windows.net/t",
            "EXTERNAL",
            json!({"azure_user_delegation_sas": {"sas_token": "?sig=s3cret"}, "aws_temp_credentials": null}),
            Access::AzureSas("sig=s3cret".to_owned()),
        ),
        (
            "gs://bucket/t",
            "EXTERNAL",
            json!({"gcp_oauth_token": {"oauth_token": "s3cret"}}),
            Access::GoogleToken("s3cret".to_owned()),
        ),
    ];
    for (location, kind, granted, access) in cases {
        let bench = Bench::new(table(kind, "DELTA", location), granted);
        let found = bench.ask().unwrap();
        assert!(!format!("{found:?}").contains("s3cret"), "{found:?}");
        assert_eq!((found.location.as_str(), found.access), (location, access));
        assert_eq!(bench.server.asked("GET /api/2.1/unity-catalog/tables/main.default.chat"), 1);
        assert_eq!(bench.server.asked("POST /api/2.1/unity-catalog/temporary-table-credentials"), 1);
        let body: Value = serde_json::from_str(&bench.server.bodies()[0]).unwrap();
        assert_eq!(body, json!({"operation": "READ", "table_id": "b1c9e2f0-0000-4000-8000-000000000000"}));
    }
}

#[test]
fn credentials_are_asked_for_by_the_earlier_interface_where_the_later_has_none() {
    let bench = Bench::new(
        table("MANAGED", "DELTA", "gs://b/t"),
        json!({"gcp_oauth_token": {"oauth_token": "s3cret"}}),
    );
    bench.server.fail("POST /api/2.1", vec![Fault::Status(404)]);
    assert_eq!(bench.ask().unwrap().access, Access::GoogleToken("s3cret".to_owned()));
    assert_eq!(bench.server.asked("POST /api/2.0/unity-catalog/temporary-table-credentials"), 1);
    bench.server.fail("POST", vec![Fault::Status(404); 2]);
    assert!(bench.error().contains("could not find table main.default.chat"), "{}", bench.error());
}

#[test]
fn a_table_in_a_folder_needs_no_credentials() {
    for (location, folder) in [("file:///data/a%20b/t", "/data/a b/t"), ("file:/data/t/", "/data/t/")] {
        let bench = Bench::new(table("EXTERNAL", "DELTA", location), json!({}));
        let found = bench.ask().unwrap();
        assert_eq!((found.location.as_str(), found.access), (folder, Access::Local));
        assert_eq!(bench.server.asked("POST"), 0);
    }
}

#[test]
fn what_is_no_delta_table_is_refused_before_credentials_are_asked_for() {
    let cases = [
        (table("VIEW", "", ""), "of the kind VIEW"),
        (table("MATERIALIZED_VIEW", "DELTA", "s3://b/t"), "of the kind MATERIALIZED_VIEW"),
        (table("FOREIGN", "SNOWFLAKE_FORMAT", ""), "of the kind FOREIGN"),
        (table("MANAGED_SHALLOW_CLONE", "DELTA", "s3://b/t"), "of the kind MANAGED_SHALLOW_CLONE"),
        (table("EXTERNAL", "CSV", "s3://b/t"), "in the format CSV"),
        (table("MANAGED", "DELTA", ""), "without a place"),
        (
            json!({"table_type": "VIEW", "data_source_format": null, "storage_location": null}),
            "of the kind VIEW",
        ),
        (
            json!({"table_type": "EXTERNAL", "data_source_format": "DELTA", "storage_location": null}),
            "without a place",
        ),
    ];
    for (table, said) in cases {
        let bench = Bench::new(table, json!({}));
        let error = bench.error();
        assert!(
            error.contains(&format!("main.default.chat is {said}")) && error.contains("CREATE TABLE"),
            "{error}"
        );
        assert_eq!(bench.server.asked("POST"), 0);
    }
}

#[test]
fn refusals_are_named_and_tell_no_token() {
    let bench = Bench::new(
        table("MANAGED", "DELTA", "s3://b/t"),
        json!({"r2_temp_credentials": {"secret_access_key": "s3cret"}}),
    );
    let error = bench.error();
    assert!(
        error.contains("no credentials that are known here for main.default.chat (r2_temp_credentials)"),
        "{error}"
    );
    let error = bench.ask_as("main.default.none", TOKEN).unwrap_err().to_string();
    assert!(error.contains("could not find table main.default.none on the workspace"), "{error}");
    let error = bench.ask_as("main.default.chat", "old-s3cret").unwrap_err().to_string();
    assert!(error.contains("does not take DATABRICKS_TOKEN (401)") && !error.contains("s3cret"), "{error}");
    for request in ["GET", "POST"] {
        bench.server.fail(request, vec![Fault::Status(403)]);
        let error = bench.error();
        assert!(error.contains("does not have permission to access table main.default.chat"), "{error}");
        assert!(
            error.contains("no right for [redacted]") && error.contains("EXTERNAL USE SCHEMA"),
            "{error}"
        );
    }
    bench.server.fail("GET", vec![Fault::Status(503); 6]);
    assert!(bench.error().contains("cannot be reached for main.default.chat"), "{}", bench.error());
}

#[test]
fn what_no_catalogue_says_is_not_asked_for_again() {
    let bench = Bench::new(table("MANAGED", "DELTA", "s3://b/t"), json!({}));
    let refused = |request: &str| {
        let before = bench.server.asked(request);
        let error = bench.error();
        assert!(
            error.contains("answers about table main.default.chat with what no catalogue says"),
            "{error}"
        );
        assert!(error.contains("(line 1, column ") && error.contains("check DATABRICKS_HOST"), "{error}");
        assert_eq!(bench.server.asked(request), before + 1);
    };
    bench.server.catalog(CREDENTIALS, r#"{"aws_temp_credentials": {"access_key_id": "s3cret"}}"#);
    refused("POST");
    bench.server.catalog("tables/main.default.chat", "<html>Sign in with s3cret</html>");
    refused("GET");
}
