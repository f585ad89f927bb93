// Fixtures and inputs of the tests are their own.
#![allow(clippy::unwrap_used)]

use serde_json::json;

use super::*;

fn render(template: &str, messages: &Json, variables: Json) -> Result<String, ChatError> {
    let Json::Object(variables) = variables else { unreachable!() };
    ChatTemplate::new(template)?.render(messages, &variables, &str::to_owned)
}

#[test]
fn tojson_is_that_of_python() {
    let value = json!({"b": [1, 2.5, -3, true, null, "<é> \"q\" \n"], "a": {}, "c": []});
    let compact = render("{{ v | tojson }}", &json!([]), json!({ "v": value })).unwrap();
    assert_eq!(compact, r#"{"b": [1, 2.5, -3, true, null, "<é> \"q\" \n"], "a": {}, "c": []}"#);
    let value = json!({"b": [1, {"x": 2}], "a": {}});
    let indented = render("{{ v | tojson(indent=2) }}", &json!([]), json!({ "v": value })).unwrap();
    assert_eq!(indented, "{\n  \"b\": [\n    1,\n    {\n      \"x\": 2\n    }\n  ],\n  \"a\": {}\n}");
    let sorted = render("{{ v | tojson(sort_keys=true) }}", &json!([]), json!({ "v": value })).unwrap();
    assert_eq!(sorted, r#"{"a": {}, "b": [1, {"x": 2}]}"#);
}

#[test]
fn blocks_are_trimmed_and_nothing_is_escaped() {
    let template = "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content.strip() }}\n    {% endif %}\n{% endfor %}";
    let messages = json!([{"role": "user", "content": " <b>&'x' "}, {"role": "assistant", "content": "no"}]);
    assert_eq!(render(template, &messages, json!({})).unwrap(), "<b>&'x'\n");
}

#[test]
fn what_goes_wrong() {
    let refused = render("{{ raise_exception('no ' + messages[0].role) }}", &json!([{"role": "system"}]), json!({}));
    assert!(matches!(refused, Err(ChatError::Refused(message)) if message == "no system"));
    assert!(matches!(render("{{ messages.x.y }}", &json!([]), json!({})), Err(ChatError::Failed(_))));
    assert!(matches!(render("{% if %}", &json!([]), json!({})), Err(ChatError::Syntax(_))));
    let endless = "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}";
    assert!(matches!(render(endless, &json!([]), json!({})), Err(ChatError::Failed(_))));
    assert!(matches!(render("{{ strftime_now('%Q') }}", &json!([]), json!({})), Err(ChatError::Failed(_))));
    let year = render("{{ strftime_now('%Y') }}", &json!([]), json!({})).unwrap();
    assert!(year.parse::<u32>().unwrap() >= 2024);
}

#[test]
fn where_templates_come_from() {
    let from = |chat: Option<&str>, config: Option<&str>, name: Option<&str>| {
        ChatTemplate::from_files(chat, config, name)
            .map(|found| found.map(|found| found.render(&json!([]), &Map::new(), &str::to_owned).unwrap()))
    };
    let config = r#"{"chat_template": "config"}"#;
    let several =
        r#"{"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]}"#;
    assert_eq!(from(Some(r#"{"chat_template": "json"}"#), Some(config), None).unwrap().unwrap(), "json");
    assert_eq!(from(Some("{{ 'jinja' }}"), Some(config), None).unwrap().unwrap(), "jinja");
    assert_eq!(from(None, Some(config), None).unwrap().unwrap(), "config");
    assert_eq!(from(None, Some(several), None).unwrap().unwrap(), "one");
    assert_eq!(from(None, Some(several), Some("tool_use")).unwrap().unwrap(), "two");
    assert_eq!(from(None, Some("{}"), None).unwrap(), None);
    assert_eq!(from(None, None, None).unwrap(), None);
    let missing = from(None, Some(several), Some("rag")).unwrap_err();
    assert_eq!(missing.to_string(), "tokenizer_config.json has no chat template named rag, only default, tool_use");
    assert!(matches!(from(None, Some("["), None), Err(ChatError::Json { .. })));
}

#[test]
fn messages_for_templates() {
    let image = Part::Image(vgen_core::ImageRef::Url("http://x/".into()));
    let text = |text: &str| Part::Text(text.to_owned());
    let messages = [
        Message { role: Role::System, content: Content::Parts(vec![text("a"), text("b")]) },
        Message { role: Role::User, content: Content::Parts(vec![text("q"), image]) },
        Message::text(Role::Assistant, "c"),
    ];
    let expected = json!([
        {"role": "system", "content": "ab"},
        {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "image"}]},
        {"role": "assistant", "content": "c"},
    ]);
    assert_eq!(template_messages(&messages), expected);
}
