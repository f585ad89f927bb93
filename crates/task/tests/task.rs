//! The task's parameters, its messages and its output rows.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail and tell why")]

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use vgen_core::{
    Content, Fault, FinishReason, Generation, ImageRef, Part, Response, Role, Row, SamplingParams, TokenLogprob,
    TopLogprob, Usage,
};
use vgen_task::{
    ImagePosition, ImageType, PilFormat, RawImages, RowContext, TaskBuilder, TaskConfig, TaskError,
    TextGenerationWithImage, data_url, encode_image,
};

const PNG: &[u8] = include_bytes!("images/rgb.png");

fn builder() -> TaskBuilder {
    TextGenerationWithImage::builder()
}

fn row(value: Value) -> Row {
    Row::from_json(&value.to_string()).unwrap()
}

fn parsed(row: &Row) -> Value {
    serde_json::from_str(&row.to_json()).unwrap()
}

fn images(task: &TextGenerationWithImage, image: Value, context: &RowContext<'_>) -> Result<Vec<ImageRef>, Fault> {
    let rendered = task.render(&row(json!({"instruction": "q", "image": image})), context)?;
    Ok(rendered.messages.last().unwrap().images().cloned().collect())
}

fn code(task: &TextGenerationWithImage, image: Value) -> String {
    images(task, image, &RowContext::new(0)).unwrap_err().code.into_owned()
}

fn base64(bytes: &[u8]) -> String {
    data_url(bytes).split_once(',').unwrap().1.to_owned()
}

#[test]
fn the_task_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<TextGenerationWithImage>();
}

#[test]
fn everything_wrong_with_a_config_is_found_at_once() {
    let map =
        json!({"image_type": "png", "columns": 3, "num_generations": 1.5, "colums": "a", "add_raw_input": "maybe"});
    let error = TaskConfig::from_map(map.as_object().unwrap()).unwrap_err();
    let mut codes: Vec<_> = error.all().iter().map(|error| error.to_string()).collect();
    codes.sort();
    assert_eq!(codes.len(), 5, "{codes:?}");
    assert!(codes.iter().any(|text| text.contains("\"image_type\"") && text.contains("\"PIL\"")), "{codes:?}");
    let fault = Fault::from(error);
    assert!(fault.hint.unwrap().contains("did you mean \"columns\"?"));

    let error = builder().name("a b").num_generations(0).input_mapping("nope", "x").template("{{").build().unwrap_err();
    let codes: Vec<_> = error.all().iter().map(|error| error.code()).collect();
    assert_eq!(codes, ["task.invalid_parameter", "task.invalid_parameter", "task.unknown_mapping", "template.syntax"]);
    assert!(builder().num_generations(4096).build().is_ok());
    let error = builder().num_generations(4097).build().unwrap_err();
    assert!(error.to_string().contains("expected 1 to 4096, got 4097"), "{error}");
}

#[test]
fn config_takes_what_pydantic_takes() {
    let map = json!({"num_generations": "3", "group_generations": "yes", "add_raw_output": null, "columns": "q",
        "template": "{{ q }}", "input_batch_size": "10", "system_prompt": null});
    let config: TaskConfig = serde_json::from_value(map).unwrap();
    assert_eq!((config.num_generations, config.group_generations), (Some(3), Some(true)));
    let task = TextGenerationWithImage::from_config(config).unwrap();
    assert_eq!(task.num_generations(), 3);
    assert_eq!(task.warnings().len(), 1);
    assert!(serde_json::from_value::<TaskConfig>(json!({"input_batch_size": 0})).is_err());
}

#[test]
fn messages_are_distilabels_and_images_may_come_first() {
    let question = row(json!({"instruction": "What?", "image": "https://a/b.png"}));
    let task = builder().system_prompt("S").build().unwrap();
    let rendered = task.render(&question, &RowContext::new(0)).unwrap();
    let text = serde_json::to_string(&rendered.messages).unwrap();
    let expected = concat!(
        r#"[{"role":"system","content":"S"},{"role":"user","content":[{"type":"text","text":"What?"},"#,
        r#"{"type":"image_url","image_url":{"url":"https://a/b.png"}}]}]"#
    );
    assert_eq!(text, expected);
    assert_eq!(rendered.raw_input.unwrap().get(), expected);

    let task = builder().image_position(ImagePosition::First).num_generations(2).build().unwrap();
    let request = task.request(&question, &RowContext::new(7), SamplingParams::default()).unwrap();
    assert_eq!((request.row, request.num_generations), (7, 2));
    let Content::Parts(parts) = &request.messages[0].content else { panic!("parts") };
    assert!(matches!(parts[0], Part::Image(_)) && matches!(parts[1], Part::Text(_)));
}

#[test]
fn the_rows_system_prompt_wins_unless_told_otherwise() {
    let question = row(json!({"instruction": "q", "image": "http://h/i", "system_prompt": "row"}));
    let roles = |task: TextGenerationWithImage| {
        let messages = task.render(&question, &RowContext::new(0)).unwrap().messages;
        (messages[0].role == Role::System).then(|| messages[0].content.clone())
    };
    let of = |text: &str| Some(Content::Text(text.to_owned()));
    assert_eq!(roles(builder().system_prompt("task").build().unwrap()), of("row"));
    assert_eq!(roles(builder().system_prompt("task").row_system_prompt(false).build().unwrap()), of("task"));
    assert_eq!(roles(builder().row_system_prompt(false).build().unwrap()), None);
}

#[test]
fn images_of_a_url_column() {
    let task = builder().build().unwrap();
    let file = Path::new("/data/rows.jsonl");
    let context = RowContext::of_file(0, file);
    let one = |image: Value| images(&task, image, &context).unwrap().remove(0);
    assert_eq!(one(json!("HTTPS://a/b")), ImageRef::Url("HTTPS://a/b".into()));
    assert_eq!(one(json!("img/a.png")), ImageRef::Path(PathBuf::from("/data/img/a.png")));
    assert_eq!(one(json!("/abs/a.png")), ImageRef::Path(PathBuf::from("/abs/a.png")));
    assert_eq!(one(json!("file:///x/a%20b.png")), ImageRef::Path(PathBuf::from("/x/a b.png")));
    assert_eq!(one(json!({"url": "http://h/i", "detail": "low"})), ImageRef::Url("http://h/i".into()));
    assert_eq!(one(json!({"bytes": null, "path": "a.png"})), ImageRef::Path(PathBuf::from("/data/a.png")));
    assert_eq!(
        one(json!({"bytes": PNG, "path": "a.png"})),
        ImageRef::Bytes { bytes: PNG.into(), name: Some("a.png".into()) }
    );
    assert_eq!(images(&task, json!(["http://h/1", null, "http://h/2"]), &context).unwrap().len(), 2);
    for (image, expected) in [
        (json!(null), "image.missing"),
        (json!([]), "image.missing"),
        (json!(""), "image.empty"),
        (json!(7), "image.invalid"),
        (json!("s3://b/k"), "image.url"),
        (json!({"bytes": "aGVsbG8="}), "image.unknown_format"),
    ] {
        assert_eq!(code(&task, image.clone()), expected, "{image}");
    }
    let fault = task.render(&row(json!({"instruction": "q"})), &context).unwrap_err();
    assert_eq!(fault.code, "row.missing_image");
    assert_eq!(fault.message, "row 0 of /data/rows.jsonl: column \"image\" is missing");
    let optional = builder().image_required(false).build().unwrap();
    assert!(images(&optional, json!(null), &context).unwrap().is_empty());
}

#[test]
fn images_of_a_base64_column() {
    let task = builder().image_type(ImageType::Base64).build().unwrap();
    let bytes = || ImageRef::Bytes { bytes: PNG.into(), name: None };
    let one = |image: &str| images(&task, json!(image), &RowContext::new(0)).unwrap().remove(0);
    let text = base64(PNG);
    assert_eq!(one(&text), bytes());
    assert_eq!(one(&format!("{}\n{}\n", &text[..40], &text[40..])), bytes());
    assert_eq!(one(text.trim_end_matches('=')), bytes());
    assert_eq!(one(&text.replace('+', "-").replace('/', "_")), bytes());
    assert_eq!(one(&data_url(PNG)), ImageRef::Url(data_url(PNG).into()));
    assert_eq!(code(&task, json!("!!!")), "image.base64");
    assert_eq!(code(&task, json!("aGVsbG8=")), "image.unknown_format");
    assert!(data_url(PNG).starts_with("data:image/png;base64,"));
}

#[test]
fn images_in_memory_are_named_by_digest_or_kept_whole() {
    let question = row(json!({"instruction": "q", "image": {"bytes": base64(PNG), "path": null}}));
    let raw_url = |task: TextGenerationWithImage| {
        let raw = task.render(&question, &RowContext::new(0)).unwrap().raw_input.unwrap();
        let raw: Value = serde_json::from_str(raw.get()).unwrap();
        raw[0]["content"][1]["image_url"]["url"].as_str().unwrap().to_owned()
    };
    let pil = || builder().image_type(ImageType::Pil);
    let digest = raw_url(pil().build().unwrap());
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
    assert_eq!(raw_url(pil().raw_images(RawImages::Inline).build().unwrap()), data_url(PNG));
    let jpeg = raw_url(pil().raw_images(RawImages::Inline).pil_format(PilFormat::Jpeg).build().unwrap());
    assert!(jpeg.starts_with("data:image/jpeg;base64,/9j/"), "{jpeg}");
    assert_eq!(code(&pil().build().unwrap(), json!("a.png")), "image.not_pil");

    let transparent = json!({"bytes": include_bytes!("images/rgba.png").to_vec()});
    let task = pil().pil_format(PilFormat::Jpeg).build().unwrap();
    assert_eq!(code(&task, transparent), "image.not_jpeg_encodable");
}

#[test]
fn pixels_are_encoded_without_loss() {
    let mut pixels = image::RgbImage::new(3, 2);
    pixels.put_pixel(2, 1, image::Rgb([1, 2, 3]));
    let ImageRef::Bytes { bytes, .. } = encode_image(&pixels.clone().into()).unwrap() else { panic!("bytes") };
    assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8(), pixels);
}

fn answer(text: &str) -> Generation {
    Generation {
        text: Some(text.to_owned()),
        finish_reason: Some(FinishReason::Stop),
        usage: Some(Usage { input_tokens: 5, output_tokens: 2, vision_tokens: None }),
        ..Generation::default()
    }
}

fn response(generations: Vec<Result<Generation, Fault>>) -> Result<Response, Fault> {
    Ok(Response { model_name: "m".to_owned(), generations })
}

#[test]
fn each_answer_is_a_row_and_a_failed_one_tells_why() {
    let question =
        Row::from_json(r#"{"id":123456789012345678901234567890,"x":100.0,"instruction":"q","image":"http://h/i"}"#)
            .unwrap();
    let task = builder().num_generations(2).build().unwrap();
    let rendered = task.render(&question, &RowContext::new(0)).unwrap();
    let fault = Fault::row("remote.timeout", "no answer in time").with_attempts(3);
    let rows = task.output_rows(&question, Some(&rendered), &response(vec![Ok(answer("a")), Err(fault)]));
    assert_eq!(rows.len(), 2);
    let names: Vec<_> = rows[0].names().collect();
    assert_eq!(
        names,
        [
            "id",
            "x",
            "instruction",
            "image",
            "generation",
            "distilabel_metadata",
            "model_name",
            "finish_reason",
            "error"
        ]
    );
    assert_eq!(names[4..], task.written_columns());
    assert!(rows[0].to_json().starts_with(r#"{"id":123456789012345678901234567890,"x":100.0,"#));
    let (first, second) = (parsed(&rows[0]), parsed(&rows[1]));
    assert_eq!(first["generation"], "a");
    assert_eq!(first["finish_reason"], "stop");
    assert_eq!(first["error"], Value::Null);
    let metadata = &first["distilabel_metadata"];
    assert_eq!(metadata["raw_output_text_generation_with_image_0"], "a");
    assert_eq!(metadata["statistics_text_generation_with_image_0"], json!({"input_tokens": 5, "output_tokens": 2}));
    assert_eq!(second["generation"], Value::Null);
    assert_eq!(second["error"]["code"], "remote.timeout");
    assert_eq!(second["error"]["attempts"], 3);
    assert!(second["distilabel_metadata"].get("statistics_text_generation_with_image_0").is_none());
}

#[test]
fn grouped_answers_share_a_row() {
    let question = row(json!({"instruction": "q", "image": "http://h/i"}));
    let task = builder().num_generations(2).group_generations(true).name("cap").build().unwrap();
    let rendered = task.render(&question, &RowContext::new(0)).unwrap();
    let mut second = answer("b");
    second.logprobs = Some(vec![TokenLogprob {
        token: "b".to_owned(),
        logprob: -0.5,
        top_logprobs: vec![TopLogprob { token: "c".to_owned(), logprob: -0.25 }],
    }]);
    let rows = task.output_rows(&question, Some(&rendered), &response(vec![Ok(answer("a")), Ok(second)]));
    assert_eq!(rows.len(), 1);
    let out = parsed(&rows[0]);
    assert_eq!(out["generation"], json!(["a", "b"]));
    assert_eq!(out["finish_reason"], json!(["stop", "stop"]));
    assert_eq!(out["error"], Value::Null);
    assert_eq!(out["model_name"], "m");
    assert_eq!(out["distilabel_metadata"][1]["raw_output_cap"], "b");
    assert_eq!(
        out["llm_cap_logprobs"],
        json!([null, [[{"token": "b", "logprob": -0.5}, {"token": "c", "logprob": -0.25}]]])
    );
}

#[test]
fn a_row_that_fails_whole_stays_with_its_error() {
    let question =
        row(json!({"instruction": "q", "image": "http://h/i", "distilabel_metadata": {"raw_output_first": "x"}}));
    let task = builder().num_generations(3).build().unwrap();
    let rows = task.output_rows(&question, None, &Err(Fault::row("image.decode", "row 0: no image")));
    assert_eq!(rows.len(), 1);
    let out = parsed(&rows[0]);
    assert_eq!(out["generation"], Value::Null);
    assert_eq!(out["model_name"], Value::Null);
    assert_eq!(out["error"]["code"], "image.decode");
    assert_eq!(out["distilabel_metadata"]["raw_output_first"], "x");
    assert_eq!(task.output_rows(&question, None, &response(Vec::new())).len(), 1);
}

#[test]
fn metadata_of_earlier_steps_is_kept() {
    let task = builder().add_raw_input(false).name("b").build().unwrap();
    let merged = |old: Value| {
        let question = row(json!({"instruction": "q", "image": "http://h/i", "distilabel_metadata": old}));
        let rows = task.output_rows(&question, None, &response(vec![Ok(answer("a"))]));
        parsed(&rows[0])["distilabel_metadata"].clone()
    };
    assert_eq!(merged(json!({"raw_output_a": "x"}))["raw_output_a"], "x");
    assert_eq!(merged(json!({"raw_output_a": "x"}))["raw_output_b"], "a");
    assert_eq!(merged(json!([{"k": 1}, {"k": 2}]))["previous"], json!([{"k": 1}, {"k": 2}]));
    assert_eq!(merged(json!(null))["raw_output_b"], "a");
}

#[test]
fn columns_are_read_and_written_under_other_names() {
    let task = builder()
        .input_mapping("instruction", "prompt")
        .input_mapping("image", "picture")
        .output_mapping("generation", "caption")
        .output_mapping("error", "why")
        .build()
        .unwrap();
    assert_eq!(
        task.input_columns(),
        [("prompt".to_owned(), true), ("system_prompt".to_owned(), false), ("picture".to_owned(), true)]
    );
    assert_eq!(task.output_columns(), ["caption", "model_name"]);
    let question = row(json!({"prompt": "p", "picture": "http://h/i", "instruction": "kept", "caption": "old"}));
    let rendered = task.render(&question, &RowContext::new(0)).unwrap();
    let out = parsed(&task.output_rows(&question, Some(&rendered), &response(vec![Ok(answer("new"))]))[0]);
    assert_eq!((&out["caption"], &out["instruction"], &out["why"]), (&json!("new"), &json!("kept"), &Value::Null));
    assert!(out.get("generation").is_none() && out.get("error").is_none());
    let error: TaskError = builder().output_mapping("generaton", "x").build().unwrap_err();
    assert_eq!(error.code(), "task.unknown_mapping");
}
