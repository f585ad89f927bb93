//! The config file, the flags over it, and usage errors.

use crate::support::{Scratch, rows};

#[test]
fn unknown_keys_say_where_they_are_and_what_was_meant() {
    for (more, message, hint) in [
        (
            "[sampling]\ntemprature = 0.5\n",
            "config run.toml: unknown key \"temprature\" in [sampling]",
            "did you mean \"temperature\"?",
        ),
        ("[smapling]\n", "config run.toml: unknown table [smapling]", "did you mean \"sampling\"?"),
        (
            "anser = \"x\"\n",
            "config run.toml: unknown key \"anser\" in [backend] of kind \"mock\"",
            "did you mean \"answer\"?",
        ),
    ] {
        let scratch = Scratch::with(rows(1), more);
        scratch.run(&[]).exits(2).says(&format!("error: {message}")).says(&format!("hint: {hint}"));
    }
    let scratch = Scratch::with(rows(1), "");
    scratch.file("run.toml", "[task]\nsystem_promt = \"x\"\n");
    scratch.run(&[]).exits(2).says("unknown key \"system_promt\" in [task]").says("did you mean \"system_prompt\"?");
}

#[test]
fn values_of_the_wrong_type_name_file_table_and_key() {
    for (more, message) in [
        ("[sampling]\ntemperature = \"hot\"\n", "config run.toml: [sampling] temperature: "),
        ("window = 0\n", "the mock's window is 0"),
        ("window = -1\n", "config run.toml: [backend] window: "),
        ("answer = \"{nobody}\"\n", "unknown placeholder \"{nobody}\""),
        ("[images]\nmax_bytes = \"64 elephants\"\n", "config run.toml: [images] max_bytes: \"elephants\" is no unit"),
        ("[run]\nrow_timeout = 0\n", "config run.toml: [run] row_timeout: expected seconds above 0"),
        ("[images]\ntimeout = 2020-01-01\n", "[images] timeout: a date is no value here"),
    ] {
        Scratch::with(rows(1), more).run(&[]).exits(2).says(message);
    }
    let scratch = Scratch::with(rows(1), "");
    scratch.file("run.toml", "[task]\nimage_type = \"pil\"\n");
    scratch.run(&[]).exits(2).says("config run.toml: [task]").says("image_type");
}

#[test]
fn config_files_that_are_missing_or_no_toml_exit_with_2() {
    let scratch = Scratch::new();
    scratch.run(&[]).exits(2).says("error: config run.toml can't be read");
    scratch.file("run.toml", "[input]\npath = \n");
    scratch.run(&[]).exits(2).says("error: config run.toml line 2: ");
    scratch.file("run.toml", "[input]\npath = \"rows.jsonl\"\n");
    scratch.file("rows.jsonl", rows(1));
    scratch.run(&[]).exits(2).says("error: no backend is named");
}

#[test]
fn flags_override_the_file() {
    let scratch = Scratch::with(rows(3), "answer = \"{prompt}\"\n[sampling]\nseed = 1\n");
    scratch.run(&["--template", "Q: {{ instruction }}", "--limit", "2"]).exits(0);
    let rows = scratch.rows("out.jsonl");
    assert_eq!((rows.len(), rows[1]["generation"].as_str()), (2, Some("Q: question 1")));
}

#[test]
fn the_resolved_configuration_names_the_origin_of_each_value_and_is_a_config_file() {
    let scratch = Scratch::with(rows(3), "[sampling]\nseed = 7\ntop_k = 5\n");
    let printed = scratch.run(&["--top-k", "9", "--print-config"]).exits(0).stdout;
    let line = |start: &str| printed.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
    assert!(line("seed = 7 ").ends_with("# run.toml"), "{printed}");
    assert!(line("top_k = 9 ").ends_with("# --top-k"), "{printed}");
    assert!(line("group_generations = false ").ends_with("# default"), "{printed}");
    assert!(line("# temperature: the model's own").starts_with('#'));
    assert!(!scratch.path("out.jsonl").exists());
    scratch.file("again.toml", &printed);
    scratch.vgen(&["run", "again.toml"]).exits(0);
    assert_eq!(scratch.rows("out.jsonl").len(), 3);
}

#[test]
fn paths_in_a_config_file_are_relative_to_it_and_flags_to_the_working_folder() {
    let scratch = Scratch::new();
    scratch.file("runs/rows.jsonl", rows(1));
    scratch.file(
        "runs/run.toml",
        "[input]\npath = \"rows.jsonl\"\n[output]\npath = \"out.jsonl\"\n[task]\nimage_required = false\n\
        [backend]\nkind = \"mock\"\n",
    );
    scratch.vgen(&["run", "runs/run.toml"]).exits(0);
    assert_eq!(scratch.rows("runs/out.jsonl").len(), 1);
    scratch.vgen(&["run", "runs/run.toml", "--output", "here.jsonl"]).exits(0);
    assert_eq!(scratch.rows("here.jsonl").len(), 1);
}

#[test]
fn parameters_that_the_backend_refuses_end_the_run_before_it_starts() {
    let scratch = Scratch::with(rows(1), "refuse = [\"top_k\"]\n");
    scratch.run(&["--top-k", "3"]).exits(2).says("error: the mock backend can't honour top_k");
    assert!(!scratch.path("out.jsonl").exists());
}

#[test]
fn flags_of_another_backend_are_refused() {
    let scratch = Scratch::with(rows(1), "");
    scratch.run(&["--dtype", "f32"]).exits(2).says("error: --dtype: a backend of kind \"mock\" has no dtype");
}

#[test]
fn constraints_exclude_each_other_and_their_files_are_read() {
    let scratch = Scratch::with(rows(1), "[sampling]\nregex = \"a+\"\n");
    scratch.run(&["--choice", "a"]).exits(2).says("regex and choice exclude each other");
    scratch.config("");
    scratch.run(&["--json-schema", "missing.json"]).exits(2).says("--json-schema: missing.json can't be read");
    scratch.file("schema.json", "{\"type\": \"object\"}");
    scratch.run(&["--json-schema", "schema.json"]).exits(0);
}

#[test]
fn template_mistakes_end_the_run_before_it_starts() {
    let scratch = Scratch::with(rows(1), "");
    scratch.run(&["--template", "{{ instruction"]).exits(2).says("error: ");
    scratch.run(&["--columns", "instruction,context"]).exits(2).says("\"context\"").says("hint: ");
    assert!(!scratch.path("out.jsonl").exists());
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    let scratch = Scratch::new();
    scratch.vgen_local(&["--temprature", "1"]).exits(2).says("--temperature");
    scratch.vgen_local(&["--model", "m"]).exits(2).says("error: no input is named").says("hint: ");
    scratch.file("rows.jsonl", rows(1));
    scratch.vgen_local(&["--input", "rows.jsonl"]).exits(2).says("error: no model is named");
    scratch.vgen_local(&["--image", "x.png", "--model", "m"]).exits(2).says("--prompt");
    scratch.vgen_local(&["--prompt", "x", "--input", "rows.jsonl"]).exits(2).says("cannot be used with");
    scratch.vgen_local(&["--model", "m", "--limit", "0"]).exits(2).says("--limit");
    scratch.vgen(&[]).exits(2);
    let help = scratch.vgen_local(&["--help"]).exits(0);
    for text in ["--max-new-tokens", "[default: 64MiB]", "Exit codes: 0 all rows done", "in seconds"] {
        assert!(help.stdout.contains(text), "{text}");
    }
    let version = scratch.vgen(&["--version"]).exits(0);
    assert!(version.stdout.starts_with(&format!("vgen {}\nfeatures: ", env!("CARGO_PKG_VERSION"))));
    assert!(help.stderr.is_empty() && version.stderr.is_empty());
}

#[test]
fn a_model_that_is_not_there_exits_with_4() {
    let scratch = Scratch::with(rows(1), "");
    scratch
        .vgen_local(&["--model", "./no-such-folder", "--input", "rows.jsonl", "--image-required=false"])
        .exits(4)
        .says("error: ");
}
