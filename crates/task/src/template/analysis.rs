//! What a parsed template says about itself before it runs: its free variables, and filters and tests that do not
//! exist.
//!
//! Scopes are Jinja2's: a loop, macro, block or `with` has its own, an `if` has not. As in Jinja2, an unknown filter
//! inside an `if` is only an error once it is reached.

use std::collections::HashSet;

use minijinja::machinery::{Span, ast};

/// A free variable of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    /// Line of its first use, from 1.
    pub(crate) line: usize,
    /// Character of that line, from 1.
    pub(crate) column: usize,
    /// The template gives a default for it, or asks whether it is defined.
    pub(crate) optional: bool,
}

/// A filter or test that does not exist.
pub(crate) struct UnknownName {
    /// `filter` or `test`.
    pub(crate) what: &'static str,
    pub(crate) name: String,
    pub(crate) span: Span,
}

const GLOBALS: [&str; 12] = [
    "range",
    "dict",
    "namespace",
    "cycler",
    "joiner",
    "lipsum",
    "loop",
    "caller",
    "varargs",
    "kwargs",
    "self",
    "super",
];

/// The result of [`analyse`].
#[derive(Default)]
pub(crate) struct Analysis {
    pub(crate) variables: Vec<Variable>,
    pub(crate) unknown: Option<UnknownName>,
}

/// Walks a template. `exists` tells whether there is a (`filter` or `test`) of a name.
pub(crate) fn analyse(template: &ast::Stmt<'_>, exists: &dyn Fn(&'static str, &str) -> bool) -> Analysis {
    let mut walk = Walk { exists, scopes: vec![HashSet::new()], soft: false, found: Analysis::default() };
    walk.stmt(template);
    walk.found
}

struct Walk<'a, 'f> {
    exists: &'f dyn Fn(&'static str, &str) -> bool,
    scopes: Vec<HashSet<&'a str>>,
    /// Inside an `if`, where unknown filters are left for later.
    soft: bool,
    found: Analysis,
}

impl<'a> Walk<'a, '_> {
    fn scoped(&mut self, inner: impl FnOnce(&mut Self)) {
        let soft = std::mem::replace(&mut self.soft, false);
        self.scopes.push(HashSet::new());
        inner(self);
        self.scopes.pop();
        self.soft = soft;
    }

    fn softly(&mut self, inner: impl FnOnce(&mut Self)) {
        let soft = std::mem::replace(&mut self.soft, true);
        inner(self);
        self.soft = soft;
    }

    fn assign_name(&mut self, name: &'a str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name);
        }
    }

    fn assign(&mut self, target: &ast::Expr<'a>) {
        match target {
            ast::Expr::Var(var) => self.assign_name(var.id),
            ast::Expr::List(list) => list.items.iter().for_each(|item| self.assign(item)),
            ast::Expr::Tuple(tuple) => tuple.items.iter().for_each(|item| self.assign(item)),
            other => self.expr(other),
        }
    }

    fn variable(&mut self, name: &str, span: Span, optional: bool) {
        if self.scopes.iter().any(|scope| scope.contains(name)) || GLOBALS.contains(&name) {
            return;
        }
        match self.found.variables.iter_mut().find(|variable| variable.name == name) {
            Some(known) => known.optional |= optional,
            None => self.found.variables.push(Variable {
                name: name.to_owned(),
                line: usize::from(span.start_line),
                column: usize::from(span.start_col) + 1,
                optional,
            }),
        }
    }

    fn named(&mut self, what: &'static str, name: &str, span: Span) {
        if !self.soft && self.found.unknown.is_none() && !(self.exists)(what, name) {
            self.found.unknown = Some(UnknownName { what, name: name.to_owned(), span });
        }
    }

    fn body(&mut self, body: &[ast::Stmt<'a>]) {
        body.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &ast::Stmt<'a>) {
        match stmt {
            ast::Stmt::Template(s) => self.body(&s.children),
            ast::Stmt::EmitExpr(s) => self.expr(&s.expr),
            ast::Stmt::EmitRaw(_) => {}
            ast::Stmt::ForLoop(s) => {
                self.expr(&s.iter);
                self.scoped(|walk| {
                    walk.assign(&s.target);
                    walk.option(s.filter_expr.as_ref());
                    walk.body(&s.body);
                });
                self.scoped(|walk| walk.body(&s.else_body));
            }
            ast::Stmt::IfCond(s) => self.softly(|walk| {
                walk.expr(&s.expr);
                walk.body(&s.true_body);
                walk.body(&s.false_body);
            }),
            ast::Stmt::WithBlock(s) => {
                s.assignments.iter().for_each(|(_, value)| self.expr(value));
                self.scoped(|walk| {
                    s.assignments.iter().for_each(|(target, _)| walk.assign(target));
                    walk.body(&s.body);
                });
            }
            ast::Stmt::Set(s) => {
                self.expr(&s.expr);
                self.assign(&s.target);
            }
            ast::Stmt::SetBlock(s) => {
                self.option(s.filter.as_ref());
                self.scoped(|walk| walk.body(&s.body));
                self.assign(&s.target);
            }
            ast::Stmt::AutoEscape(s) => {
                self.expr(&s.enabled);
                self.scoped(|walk| walk.body(&s.body));
            }
            ast::Stmt::FilterBlock(s) => {
                self.expr(&s.filter);
                self.scoped(|walk| walk.body(&s.body));
            }
            ast::Stmt::Block(s) => self.scoped(|walk| walk.body(&s.body)),
            ast::Stmt::Import(s) => {
                self.expr(&s.expr);
                self.assign(&s.name);
            }
            ast::Stmt::FromImport(s) => {
                self.expr(&s.expr);
                s.names.iter().for_each(|(name, alias)| self.assign(alias.as_ref().unwrap_or(name)));
            }
            ast::Stmt::Extends(s) => self.expr(&s.name),
            ast::Stmt::Include(s) => self.expr(&s.name),
            ast::Stmt::Macro(s) => {
                self.assign_name(s.name);
                self.macro_(s);
            }
            ast::Stmt::CallBlock(s) => {
                self.call(&s.call);
                self.macro_(&s.macro_decl);
            }
            ast::Stmt::Do(s) => self.call(&s.call),
            #[allow(unreachable_patterns, reason = "statements that only exist with features we do not ask for")]
            _ => {}
        }
    }

    fn macro_(&mut self, s: &ast::Macro<'a>) {
        s.defaults.iter().for_each(|value| self.expr(value));
        self.scoped(|walk| {
            s.args.iter().for_each(|arg| walk.assign(arg));
            walk.body(&s.body);
        });
    }

    fn option(&mut self, expr: Option<&ast::Expr<'a>>) {
        if let Some(expr) = expr {
            self.expr(expr);
        }
    }

    fn call(&mut self, call: &ast::Call<'a>) {
        self.expr(&call.expr);
        self.args(&call.args);
    }

    fn args(&mut self, args: &[ast::CallArg<'a>]) {
        for arg in args {
            match arg {
                ast::CallArg::Pos(e)
                | ast::CallArg::Kwarg(_, e)
                | ast::CallArg::PosSplat(e)
                | ast::CallArg::KwargSplat(e) => self.expr(e),
            }
        }
    }

    fn expr(&mut self, expr: &ast::Expr<'a>) {
        match expr {
            ast::Expr::Var(var) => self.variable(var.id, var.span(), false),
            ast::Expr::Const(_) => {}
            ast::Expr::Slice(e) => {
                self.expr(&e.expr);
                [&e.start, &e.stop, &e.step].into_iter().for_each(|part| self.option(part.as_ref()));
            }
            ast::Expr::UnaryOp(e) => self.expr(&e.expr),
            ast::Expr::BinOp(e) => {
                self.expr(&e.left);
                self.expr(&e.right);
            }
            ast::Expr::Compare(e) => {
                self.expr(&e.expr);
                e.ops.iter().for_each(|op| self.expr(&op.expr));
            }
            ast::Expr::IfExpr(e) => self.softly(|walk| {
                walk.expr(&e.test_expr);
                walk.expr(&e.true_expr);
                walk.option(e.false_expr.as_ref());
            }),
            ast::Expr::Filter(e) => {
                match &e.expr {
                    Some(ast::Expr::Var(var)) if matches!(e.name, "default" | "d") => {
                        self.variable(var.id, var.span(), true);
                    }
                    other => self.option(other.as_ref()),
                }
                self.args(&e.args);
                self.named("filter", e.name, e.span());
            }
            ast::Expr::Test(e) => {
                match &e.expr {
                    ast::Expr::Var(var) if matches!(e.name, "defined" | "undefined") => {
                        self.variable(var.id, var.span(), true);
                    }
                    other => self.expr(other),
                }
                self.args(&e.args);
                self.named("test", e.name, e.span());
            }
            ast::Expr::GetAttr(e) => self.expr(&e.expr),
            ast::Expr::GetItem(e) => {
                self.expr(&e.expr);
                self.expr(&e.subscript_expr);
            }
            ast::Expr::Call(e) => self.call(e),
            ast::Expr::List(e) => e.items.iter().for_each(|item| self.expr(item)),
            ast::Expr::Tuple(e) => e.items.iter().for_each(|item| self.expr(item)),
            ast::Expr::Map(e) => e.keys.iter().chain(&e.values).for_each(|item| self.expr(item)),
        }
    }
}
