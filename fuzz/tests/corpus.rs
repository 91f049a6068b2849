//! Every input of the corpus once, in an ordinary build: what was found once stays found.

use std::{fs, panic, path::Path};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 7] = [
    ("chunked", fuzz::chunked),
    ("client_hello", fuzz::client_hello),
    ("http1_head", fuzz::http1_head),
    ("http1_request", fuzz::http1_request),
    ("http1_response", fuzz::http1_response),
    ("mqtt_connect", fuzz::mqtt_connect),
    ("mqtt_packets", fuzz::mqtt_packets),
];

#[test]
fn everything_holds_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let inputs = fs::read_dir(corpus.join(name)).unwrap();
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            if let Err(panic) = panic::catch_unwind(|| target(&bytes)) {
                eprintln!("the input is {}", path.display());
                panic::resume_unwind(panic);
            }
            count += 1;
        }
        assert!(count > 10, "{name}: only {count} inputs");
    }
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &str| {
        let mut names: Vec<String> = fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let targets = TARGETS.map(|(name, _)| name);
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}
