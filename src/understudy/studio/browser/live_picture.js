// The live picture of a studio, and what a person holds while it has the focus: keys, the pointer or a gamepad.

const CONTROLS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "w", "a", "s", "d"];
const COMMANDS = ["Enter", "x", "y", "n", "u", "p", ".", "t"];
const BUTTONS = ["y", "n", "x", "Enter"]; // of a gamepad with the standard layout, from the lowest on
const INTERVAL = 25; // ms: a step uses what was held so long ago; after half a second without a message, it holds
const REACH = 0.25; // of the picture: how far to drag for full speed
const LINE = 0.006, LINE_COLOR = "rgb(106 27 154 / 0.65)"; // of plans: width in sides of the picture
const DEAD_ZONE = 0.15; // of a stick: below it, the stick is at rest

export default {
  template: `
    <div class="live" tabindex="0" role="application" :aria-label="label" ref="area"
         @keydown="press" @keyup="release" @blur="releaseAll" @pointerdown="grab" @pointermove="drag"
         @pointerup="drop" @pointercancel="drop">
      <canvas ref="canvas" width="560" height="560" aria-hidden="true"></canvas>
    </div>`,
  props: { label: String },
  mounted() {
    this.held = new Set();
    this.dragged = [0, 0];
    this.pressed = new Set();
    this.timer = setInterval(() => { this.pollButtons(); this.tell(); }, INTERVAL);
    this.hidden = () => { if (document.hidden) this.releaseAll(); };
    document.addEventListener("visibilitychange", this.hidden);
  },
  unmounted() {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.hidden);
  },
  methods: {
    // A page in the background is silent, so that nothing moves while nobody sees it.
    tell() {
      if (!document.hidden) this.$emit("held", { held: [...this.held], axes: this.axes() });
    },
    gamepad() { // some browsers have none for a page of another machine without TLS
      return [...(navigator.getGamepads?.() ?? [])].find((pad) => pad && pad.connected);
    },
    axes() {
      const pad = this.gamepad(), stick = pad ? [pad.axes[0], -pad.axes[1]] : [0, 0];
      return Math.hypot(...stick) > DEAD_ZONE ? stick : this.dragged;
    },
    pollButtons() {
      const pad = document.hidden ? undefined : this.gamepad();
      BUTTONS.forEach((command, i) => {
        const isDown = pad !== undefined && pad.buttons[i] !== undefined && pad.buttons[i].pressed;
        if (isDown && !this.pressed.has(command)) this.$emit("order", command);
        if (isDown) this.pressed.add(command); else this.pressed.delete(command);
      });
    },
    key(event) { return event.key.length === 1 ? event.key.toLowerCase() : event.key; },
    press(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const key = this.key(event);
      if (CONTROLS.includes(key)) {
        event.preventDefault();
        if (!this.held.has(key)) { this.held.add(key); this.tell(); }
      } else if (COMMANDS.includes(key)) {
        event.preventDefault();
        if (!event.repeat) this.$emit("order", key);
      }
    },
    release(event) {
      if (this.held.delete(this.key(event))) this.tell();
    },
    releaseAll() {
      this.held.clear();
      this.dragged = [0, 0];
      this.from = undefined;
      this.tell();
    },
    grab(event) {
      this.$refs.area.focus();
      this.from = [event.clientX, event.clientY];
      this.$refs.area.setPointerCapture(event.pointerId);
      event.preventDefault();
    },
    drag(event) {
      if (this.from === undefined) return;
      const full = REACH * this.$refs.canvas.clientWidth;
      const level = (distance) => Math.max(-1, Math.min(1, distance / full));
      this.dragged = [level(event.clientX - this.from[0]), level(this.from[1] - event.clientY)];
    },
    drop() {
      this.from = undefined;
      this.dragged = [0, 0];
      this.tell();
    },
    focus() { this.$refs.area.focus(); },
    load(url) {
      return new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve(image);
        image.onerror = () => resolve(undefined);
        image.src = url;
      });
    },
    async draw(shapes, lines, number) {
      Object.assign(this.$el, { shapes, lines }); // for those who cannot see the picture, and for tests
      const images = await Promise.all(shapes.map((shape) => shape.image && this.load(shape.image)));
      this.$emit("loaded", number); // the server sends no other one before
      const canvas = this.$refs.canvas, pen = canvas.getContext("2d"), side = canvas.width;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = "#f6f4ee";
      pen.fillRect(0, 0, side, side);
      for (const [i, shape] of shapes.entries()) {
        pen.setTransform(side, 0, 0, side, shape.at[0] * side, shape.at[1] * side);
        pen.fillStyle = shape.color;
        if (images[i] !== undefined) {
          const [wide, high] = shape.half;
          pen.drawImage(images[i], -wide, -high, 2 * wide, 2 * high);
        } else if (shape.radius !== undefined) {
          pen.beginPath();
          pen.arc(0, 0, shape.radius, 0, 2 * Math.PI);
          pen.fill();
        } else {
          const [cos, sin] = shape.heading, [wide, high] = shape.half;
          pen.transform(cos, sin, -sin, cos, 0, 0);
          pen.fillRect(-wide, -high, 2 * wide, 2 * high);
        }
      }
      pen.setTransform(side, 0, 0, side, 0, 0);
      pen.lineWidth = LINE;
      pen.strokeStyle = LINE_COLOR;
      for (const line of lines) {
        pen.beginPath();
        line.forEach((point) => pen.lineTo(...point));
        pen.stroke();
      }
    },
  },
};
