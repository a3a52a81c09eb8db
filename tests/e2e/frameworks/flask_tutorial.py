"""Flask's quickstart: routes, forms, files, sessions, errors, streams, static files. WSGI."""

import threading

from flask import Flask, abort, g, jsonify, redirect, request, session, stream_with_context, url_for

app = Flask(__name__)
app.secret_key = b"_5#y2L"
of_the_thread = threading.local()


@app.route("/")
def index():
    return "Index Page"


@app.route("/post/<int:post_id>")
def show_post(post_id):
    return jsonify(post=post_id, url=url_for("index", _external=True), path=request.path, root=request.script_root, scheme=request.scheme)


@app.route("/login", methods=["POST"])
def login():
    session["username"] = request.form["username"]
    return redirect(url_for("who"))


@app.route("/who")
def who():
    return session.get("username", "nobody")


@app.route("/upload", methods=["POST"])
def upload():
    file = request.files["the_file"]
    return jsonify(name=file.filename, size=len(file.read()))


@app.route("/length", methods=["POST"])
def length():
    return str(len(request.get_data()))


@app.route("/large.csv")
def generate_large_csv():
    def generate():
        for number in range(1000):
            yield f"{number},{request.path}\n"

    return app.response_class(stream_with_context(generate()), mimetype="text/csv")


@app.route("/forever")
def forever():
    def generate():
        try:
            while not threading.Event().wait(0.02):
                yield "tick\n"
        finally:
            with open("log.txt", "a") as log:
                log.write("stream over\n")

    return app.response_class(generate(), mimetype="text/plain")


@app.route("/remembered/<word>")
def remembered(word):
    before = getattr(of_the_thread, "word", "nothing")
    of_the_thread.word = g.word = word
    return before


@app.route("/error")
def error():
    raise RuntimeError("a bug of the shop")


@app.errorhandler(404)
def not_found(error):
    return "This page does not exist", 404


@app.route("/refused")
def refused():
    abort(401)
