//! Reports as files. `schema/report-1.json` describes them.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::{Report, SCHEMA};

/// A report cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot write the report; give a path in a folder that exists and has room", .path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why a file is not a report that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}: cannot read it; give a file that exists and that you may read", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: is no report; give a file that loadtest --json wrote", .path.display())]
    Foreign {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error(
        "{}: the schema is {found:?}, and this loadtest reads {SCHEMA:?}; read it with the version that wrote it", .path.display()
    )]
    Version { path: PathBuf, found: String },
}

/// Writes a report so that the file is whole at every moment: either the old one or the new one. Errors: the file beside
/// it cannot be written, or cannot take its place.
pub fn write(report: &Report, path: &Path) -> Result<(), WriteError> {
    let mut json = serde_json::to_vec_pretty(report).expect("maps have text or numbers as keys");
    json.push(b'\n');

    let failed = |source| WriteError { path: path.to_owned(), source };
    // The file behind a link, so that the link stays; and nothing takes the place of a pipe or a terminal.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&target).is_ok_and(|target| !target.is_file()) {
        return fs::write(&target, json).map_err(failed);
    }
    let mut beside = target.as_os_str().to_owned();
    beside.push(format!(".{}.tmp", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = fs::File::create(&beside)
        .and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&beside, &target));
    written.map_err(|source| {
        let _ = fs::remove_file(&beside);
        failed(source)
    })
}

/// Reads a report. Errors: it cannot be read, is none, or has another schema than [`SCHEMA`].
pub fn read(path: &Path) -> Result<Report, ReadError> {
    #[derive(Deserialize)]
    struct Head {
        schema: String,
    }

    let json = fs::read(path).map_err(|source| ReadError::Read { path: path.to_owned(), source })?;
    let foreign = |source| ReadError::Foreign { path: path.to_owned(), source };
    // The version first: the fields of another one may differ.
    let Head { schema } = serde_json::from_slice(&json).map_err(foreign)?;
    if schema != SCHEMA {
        return Err(ReadError::Version { path: path.to_owned(), found: schema });
    }
    serde_json::from_slice(&json).map_err(foreign)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::report::sample;

    fn schema() -> Value {
        serde_json::from_str(include_str!("../../schema/report-1.json")).unwrap()
    }

    /// The schema without leave to have fields that it does not describe.
    fn strict(schema: &mut Value) {
        if let Some(object) = schema.as_object_mut() {
            if object.contains_key("properties") {
                object.insert("additionalProperties".to_owned(), json!(false));
            }
            object.values_mut().for_each(strict);
        }
    }

    fn faults(schema: &Value, report: &Value) -> Vec<String> {
        let validator = jsonschema::draft202012::new(schema).unwrap();
        validator.iter_errors(report).map(|fault| format!("{}: {fault}", fault.instance_path())).collect()
    }

    #[test]
    fn the_schema_describes_every_field() {
        jsonschema::draft202012::meta::validate(&schema()).unwrap();
        let mut strict_schema = schema();
        strict(&mut strict_schema);
        let mut empty = sample::report();
        (empty.series, empty.arms, empty.seconds, empty.account) = Default::default();
        empty.end.rate_asked = None;
        empty.end.reason = Some("stopped".to_owned());
        for report in [sample::report(), sample::mqtt(), empty] {
            let report = serde_json::to_value(report).unwrap();
            assert_eq!(faults(&strict_schema, &report), [""; 0]);
        }
    }

    #[test]
    fn the_schema_refuses_what_is_no_report_and_lets_fields_be_added() {
        let good = serde_json::to_value(sample::report()).unwrap();
        for (place, value) in [
            ("/schema", json!("loadtest-report/2")),
            ("/run/id", json!("xyz")),
            ("/account/sent", json!(-1)),
            ("/account/failed/reset", json!("2")),
            ("/end/rate_asked", json!("fast")),
            ("/series/latency/all/p99", json!(1.5)),
            ("/series/latency/all/curve/0", json!([0.5])),
            ("/arms/blue/share", json!(1.5)),
            ("/seconds/3", json!({})),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = value;
            assert_eq!(faults(&schema(), &bad).len().min(1), 1, "{place}");
        }
        let mut more = good;
        more["run"]["host"] = json!("new in some later version");
        assert_eq!(faults(&schema(), &more), [""; 0]);
    }

    #[test]
    fn what_is_written_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        fs::write(&path, "an older one").unwrap();
        write(&sample::report(), &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"schema\": \"loadtest-report/1\"") && text.ends_with("}\n"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
        let read = serde_json::to_string(&read(&path).unwrap()).unwrap();
        assert_eq!(read, serde_json::to_string(&sample::report()).unwrap());

        // A link stays one; what is no file is written to as it is.
        let link = folder.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write(&sample::mqtt(), &link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(super::read(&path).unwrap().run.protocol, "mqtt/5");
        write(&sample::report(), Path::new("/dev/null")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());

        let fault = write(&sample::report(), &folder.path().join("absent/report.json")).unwrap_err();
        assert!(
            fault
                .to_string()
                .ends_with("report.json: cannot write the report; give a path in a folder that exists and has room")
        );
        assert!(write(&sample::report(), folder.path()).is_err());
    }

    #[test]
    fn other_files_are_refused_with_the_cure() {
        let folder = tempfile::tempdir().unwrap();
        for (content, problem) in [
            ("", "is no report; give a file that loadtest --json wrote"),
            ("[]", "is no report"),
            ("{\"schema\": 1}", "is no report"),
            ("{\"schema\": \"loadtest-report/1\"}", "is no report"),
            (
                "{\"schema\": \"loadtest-report/2\", \"run\": 7}",
                "the schema is \"loadtest-report/2\", and this loadtest reads \"loadtest-report/1\"; read it with the \
                 version that wrote it",
            ),
        ] {
            let path = folder.path().join("other.json");
            fs::write(&path, content).unwrap();
            let fault = read(&path).unwrap_err().to_string();
            assert!(fault.contains(problem) && fault.contains("other.json: "), "{content}: {fault}");
        }
        let fault = read(&folder.path().join("absent.json")).unwrap_err().to_string();
        assert!(fault.ends_with("cannot read it; give a file that exists and that you may read"), "{fault}");
    }
}
