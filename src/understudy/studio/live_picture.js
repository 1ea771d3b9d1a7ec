// The live picture of a studio, and the keys that are held while it has the focus.

const CONTROLS = ["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "w", "a", "s", "d"];
const COMMANDS = ["Enter", "x", "y", "n", "u"];
const HEARTBEAT = 100; // ms: the server holds when it hears nothing for half a second

export default {
  template: `
    <div class="live" tabindex="0" role="application" :aria-label="label" ref="area"
         @keydown="press" @keyup="release" @blur="releaseAll" @pointerdown="$refs.area.focus()">
      <canvas ref="canvas" width="560" height="560" aria-hidden="true"></canvas>
    </div>`,
  props: { label: String },
  mounted() {
    this.held = new Set();
    this.shapes = [];
    this.timer = setInterval(() => this.tell(), HEARTBEAT);
    this.hidden = () => { if (document.hidden) this.releaseAll(); };
    document.addEventListener("visibilitychange", this.hidden);
  },
  unmounted() {
    clearInterval(this.timer);
    document.removeEventListener("visibilitychange", this.hidden);
  },
  methods: {
    // A page in the background is silent, so that nothing moves while nobody sees it.
    tell() { if (!document.hidden) this.$emit("held", [...this.held]); },
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
      if (this.held.size) { this.held.clear(); this.tell(); }
    },
    focus() { this.$refs.area.focus(); },
    draw(shapes) {
      this.$el.shapes = shapes; // for those who cannot see the picture, and for tests
      const canvas = this.$refs.canvas, pen = canvas.getContext("2d"), side = canvas.width;
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.fillStyle = "#f6f4ee";
      pen.fillRect(0, 0, side, side);
      for (const shape of shapes) {
        pen.setTransform(side, 0, 0, side, shape.at[0] * side, shape.at[1] * side);
        pen.fillStyle = shape.color;
        if (shape.radius !== undefined) {
          pen.beginPath();
          pen.arc(0, 0, shape.radius, 0, 2 * Math.PI);
          pen.fill();
        } else {
          const [cos, sin] = shape.heading, [wide, high] = shape.half;
          pen.transform(cos, sin, -sin, cos, 0, 0);
          pen.fillRect(-wide, -high, 2 * wide, 2 * high);
        }
      }
    },
  },
};
